"""JSON and YAML from files, read as if a stranger had written them.

A file of a run, a data set or a sweep may be damaged, or made by somebody else. What is read here is a regular file of
bounded size and depth, with numbers of bounded length and text that UTF-8 can hold, with each key once, of the shape
that the caller asks for. Anything else is refused in one line: the file, what is wrong with it, the remedy.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeVar

from pipelines.text import one_line

T = TypeVar("T", default=dict[str, Any])

JSON_BYTES = 2**24  # the largest file that is read; a list of a byte a number takes 30 times its size in memory
YAML_BYTES = 2**18  # PyYAML reads about 100 kB a second; a configuration has 4 kB
DEPTH = 32  # lists and mappings within each other
DIGITS = 64  # characters of a number
_SMALLEST, _LARGEST = 1 - 10 ** (DIGITS - 1), 10**DIGITS - 1
MAPPING = dict[str, Any]

_TAG = "tag:yaml.org,2002:"


class ParseError(ValueError):
    """Text or a file that cannot be read as what it should be. One line."""


def read_bytes(
    path: Path, limit: int = JSON_BYTES, *, source: str = "", error: type[ValueError] = ParseError, remedy: str = ""
) -> bytes:
    """The content of a regular file.

    Args:
        limit: bytes it may have.
        source: the beginning of the message; "": the path.
        error: the class of exception that is raised.
        remedy: the end of its message.

    Raises:
        ValueError: of the class `error`: the file is missing, cannot be read, is no regular file, or is too large.
    """
    where = source or path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
        try:
            mode, content = os.fstat(descriptor).st_mode, b""
            if stat.S_ISREG(mode):
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise _refused(where, problem.strerror or one_line(problem), error, remedy) from None
    except ValueError as problem:  # a path with a NUL character
        raise _refused(where, one_line(problem), error, remedy) from None
    if not stat.S_ISREG(mode):
        raise _refused(where, "is a folder" if stat.S_ISDIR(mode) else "not a regular file", error, remedy)
    if len(content) > limit:
        raise _refused(where, f"is larger than {limit} bytes, the most that a file of its kind has", error, remedy)
    return content


def read_json(
    path: Path,
    shape: type[T] = MAPPING,  # type: ignore[assignment]
    *,
    source: str = "",
    error: type[ValueError] = ParseError,
    remedy: str = "",
    limit: int = JSON_BYTES,
) -> T:
    """The content of a JSON file.

    Args:
        shape: what it must hold: dict[str, Any], list[str], a dataclass, a pydantic model, ...
        source, error, remedy, limit: see `read_bytes`.

    Raises:
        ValueError: of the class `error`: the file cannot be read, is no JSON, or holds something else.
    """
    content = read_bytes(path, limit, source=source, error=error, remedy=remedy)
    return parse_json(content, shape, source=source or path, error=error, remedy=remedy)


def parse_json(
    text: str | bytes,
    shape: type[T] = MAPPING,  # type: ignore[assignment]
    *,
    source: object,
    error: type[ValueError] = ParseError,
    remedy: str = "",
) -> T:
    """JSON text as `shape`; see `read_json`.

    Args:
        source: where the text is from, for the message.
    """
    try:
        tree = json.loads(text, parse_int=_whole_number, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as problem:
        raise _refused(source, f"no valid JSON ({one_line(problem, 100)})", error, remedy) from None
    if why := unusable(tree):
        raise _refused(source, why, error, remedy)
    return shaped(tree, shape, source=source, error=error, remedy=remedy)


def shaped(tree: Any, shape: type[T], *, source: object, error: type[ValueError] = ParseError, remedy: str = "") -> T:
    """A tree that was read before, as `shape`; see `read_json`.

    Raises:
        ValueError: of the class `error`: it is none. The message names the first entry that does not fit.
    """
    try:
        return cast(T, _adapter(cast(Hashable, shape)).validate_python(tree))
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else f"holds something else than expected: {first['msg']}"
        raise _refused(source, one_line(what), error, remedy) from None


def read_yaml(
    path: Path,
    *,
    source: str = "",
    error: type[ValueError] = ParseError,
    remedy: str = "",
    limit: int = YAML_BYTES,
    recorded: bool = False,
) -> Any:
    """The content of a YAML file; see `parse_yaml`.

    Args:
        source, error, remedy, limit: see `read_bytes`.
        recorded: see `parse_yaml`.

    Raises:
        ValueError: of the class `error`: the file cannot be read, or is no plain YAML.
    """
    content = read_bytes(path, limit, source=source, error=error, remedy=remedy)
    return parse_yaml(content, source=source or path, error=error, remedy=remedy, recorded=recorded)


def parse_yaml(
    text: str | bytes,
    *,
    source: object,
    error: type[ValueError] = ParseError,
    remedy: str = "",
    recorded: bool = False,
) -> Any:
    """Plain YAML: mappings, lists, text, numbers, true, false and null.

    Aliases are refused, since a few hundred bytes of them stand for gigabytes; so are tags, and a key that a mapping
    has twice. As in YAML 1.2, 1e-3 is a number, and yes, no, on, off, 1:30 and 0o17 are text; so are dates and digits
    after a zero (0704).

    Args:
        source: where the text is from, for the message.
        recorded: it was written by this package. Earlier versions wrote text such as 1e-3 without quotes, which is text
            there.

    Raises:
        ValueError: of the class `error`.
    """
    try:
        tree = yaml.load(text, _RecordLoader if recorded else _PlainLoader)  # SafeLoaders
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise _refused(source, f"no valid YAML ({one_line(problem, 160)})", error, remedy) from None
    if why := unusable(tree):
        raise _refused(source, why, error, remedy)
    return tree


def to_yaml(tree: Mapping[str, Any]) -> str:
    """The YAML text that `parse_yaml` reads back as it was, recorded or not."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def _refused(source: object, problem: str, error: type[ValueError], remedy: str) -> ValueError:
    return error(f"{source}: {problem}{'; ' * bool(remedy)}{remedy}")


@cache
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, shape))


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def unusable(tree: Any) -> str:
    """Why a tree cannot be used, although its text is valid, or could not be read back from a file; "" if it can."""
    level, texts = [tree], []
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for node in level:
            if isinstance(node, Mapping):
                below += node.keys()
                below += node.values()
            elif isinstance(node, (list, tuple)):
                below += node
            elif isinstance(node, str):
                texts.append(node)
            elif isinstance(node, int) and not _SMALLEST <= node <= _LARGEST:
                return f"holds a number of more than {DIGITS} digits"
        if not below:
            break
        level = below
    else:
        return f"is nested deeper than {DEPTH} levels"
    for text in texts:
        # Neither can be part of a path, and the second cannot be written in UTF-8.
        if "\0" in text or (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)):
            return f"holds text with a NUL or half a character: {ascii(text)[:60]}"
    return ""


class _PlainLoader(yaml.SafeLoader):
    """Stops at an alias, at a tag, and at what is nested too deep, before it is built."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"{line}: an alias, *{event.anchor}; write the value out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"{line}: a tag, {event.tag}; leave it out")
        self._depth += 1
        if self._depth > DEPTH + 1:
            raise yaml.YAMLError(f"{line}: nested deeper than {DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > DIGITS:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number of {len(node.value)} digits")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            lines: dict[Any, int] = {}
            for key_node, _ in node.value:
                key, line = self.construct_object(key_node), key_node.start_mark.line + 1
                if key in lines:
                    raise yaml.YAMLError(f"line {line}: the key {key!r} is there twice, first in line {lines[key]}")
                lines[key] = line
        return found


class _RecordLoader(_PlainLoader):
    """Reads what `yaml.SafeDumper` wrote: text that it took for text is text."""


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_PlainLoader` would take for a number, too."""


def _resolvers(scalars: Mapping[str, tuple[str, str]]) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What plain scalars are, as PyYAML has it: by the first character, the tags with their patterns."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, (pattern, firsts) in scalars.items():
        for first in firsts:
            found.setdefault(first, []).append((_TAG + tag, re.compile(rf"(?:{pattern})\Z")))
    return found


# Dates, "<<" and "=" are text: a date that does not exist raises, and the others stand for aliases and old types.
_NUMBER = "-+.0123456789"
_ONE_POINT_ONE = {  # of YAML 1.1, what SafeDumper writes, and decimal and hexadecimal numbers by hand
    "null": ("~|null|Null|NULL", "~nN"),
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": ("[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)", _NUMBER),
    "float": (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        _NUMBER,
    ),
}
_ONE_POINT_TWO = {
    **_ONE_POINT_ONE,
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _NUMBER,
    ),
}
_EMPTY = {"": [(_TAG + "null", re.compile(r"\Z"))]}
_RecordLoader.yaml_implicit_resolvers = _EMPTY | _resolvers(_ONE_POINT_ONE)
_PlainLoader.yaml_implicit_resolvers = _EMPTY | _resolvers(_ONE_POINT_TWO)
for _tag, (_pattern, _firsts) in _ONE_POINT_TWO.items():
    _Dumper.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), [*_firsts])
