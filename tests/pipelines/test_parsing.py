"""JSON and YAML that a stranger wrote: bounded in time and memory, and refused in one line that names the file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipelines.parsing import DEPTH, ParseError, parse_json, parse_yaml, read_bytes, read_json, read_yaml, to_yaml


class OwnError(ValueError):
    """The class of a caller."""


@dataclass
class Shape:
    step: int
    name: str = ""


# Nine lists of nine times the one before: 370 bytes that stand for 3.5 thousand million nodes.
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "line 2: an alias, \\*a; write the value out"),
        ("a: &a [*a]", "an alias, \\*a"),
        ("<<: &x {}\n? *x\n: 1", "an alias"),
        ("[" * 900, f"deeper than {DEPTH} levels"),
        ("[" * 100_000 + "]" * 100_000, f"deeper than {DEPTH} levels"),
        ("a:\n" + "".join(" " * n + "- \n" for n in range(1, 60)) + "b", "deeper than"),
        ("n: " + "9" * 5000, "a number of 5000 digits"),
        ("n: " + "9" * 5000 + "e1", "a number of 5002 digits"),
        ("a: 1\nb: {c: 1}\na: {d: 2}", "line 3: the key 'a' is there twice, first in line 1"),
        ("a: {b: 1, b: 1}", "the key 'b' is there twice"),
        ("{1: a, true: b}", "the key True is there twice"),
        ("!!python/object/apply:os.system [id]", "a tag, tag:yaml.org,2002:python/object/apply:os.system"),
        ("!!timestamp x", "a tag"),
        ("!!bool x", "a tag"),
        ('"\\0"', "NUL"),
        ('"\\ud800"', "half a character"),
        ("a\0", "special characters"),
        ("{[a]: b}", "unhashable"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text: str, reason: str) -> None:
    since = time.monotonic()
    with pytest.raises(OwnError, match=f"^x.yaml: .*{reason}.*; mend it$") as error:
        parse_yaml(text, source="x.yaml", error=OwnError, remedy="mend it")
    assert "\n" not in str(error.value)
    assert time.monotonic() - since < 5  # the bomb took 21 s and 3.8 GB


def test_plain_yaml_is_read() -> None:
    tree = parse_yaml("a: [1, 2.5, true, ~, 0x10, 'x']\nb: {c: 2026-01-01, d: 2026-99-99, e: =, f: }", source="")
    assert tree == {
        "a": [1, 2.5, True, None, 16, "x"], "b": {"c": "2026-01-01", "d": "2026-99-99", "e": "=", "f": None},
    }  # fmt: skip


def test_yaml_is_what_was_typed() -> None:
    """Octal, base 60 and five words for true and false are of YAML 1.1; there, 1e-3 is no number."""
    same = ["0704", "08", "0o17", "0b11", "1:30", "1:30.5", "no", "yes", "on", "off", "y", "2026-01-01"]
    assert parse_yaml(f"[{', '.join(same)}]", source="") == same
    numbers = {"1e-3": 0.001, "+2E5": 2e5, "-.5": -0.5, "1.5e3": 1500.0, "1.0e-05": 1e-5, "-7": -7, "1_000": 1000}
    assert parse_yaml(f"[{', '.join(numbers)}]", source="") == list(numbers.values())
    assert all(type(value) is float for value in parse_yaml("[1e-3, 1e3, 1.]", source=""))


def test_text_and_numbers_survive_yaml() -> None:
    plain = ["1e-3", "1e3", "-.5", "08", "0704", "no", "1:30", "", "null", "0x1f", "<<", "0o17", "a b", "~", "1_0"]
    tree = {"a": [*plain, 1e-5, 1e22, 0, -3, True, None], "b": {"no": "yes"}}
    assert parse_yaml(to_yaml(tree), source="") == parse_yaml(to_yaml(tree), source="", recorded=True) == tree
    old = yaml.safe_dump(tree)  # earlier versions put 1e-3 in no quotes
    assert parse_yaml(old, source="", recorded=True) == tree


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 900 + "]" * 900, f"deeper than {DEPTH} levels"),
        ("[" * 100_000, "no valid JSON"),
        ('{"step": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"step": "\\u0000"}', "NUL"),
        ('{"step": "\\ud800"}', "half a character"),
        (b"\xff", "utf-8"),
        ("", "no valid JSON"),
        ('{"step": 1, "name": "x", "step": 2}', "the key 'step' is there twice"),
        ('{"step": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        ("[1]", "dictionary"),
        ('{"step": [1]}', "step: Input should be a valid integer"),
        ('{"name": "x"}', "step: Field required"),
        ('{"step": 1e999}', "step: Input should be a finite number"),
    ],
)
def test_hostile_json_is_refused_at_once(text: str | bytes, reason: str) -> None:
    with pytest.raises(OwnError, match=f"^x.json: .*{reason}.*; mend it$") as error:
        parse_json(text, Shape, source="x.json", error=OwnError, remedy="mend it")
    assert "\n" not in str(error.value)


def test_json_has_the_shape_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"step": 3, "name": "x"}')
    assert read_json(path, Shape) == Shape(3, "x")
    assert read_json(path) == {"step": 3, "name": "x"}
    path.write_text("[1, 2]")
    assert read_json(path, list[int]) == [1, 2]


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 2**20)
    for path, reason in (
        (tmp_path / "pipe", "not a regular file"),  # it would be waited for
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "No such file"),
        (Path("a\0b"), "null byte"),
    ):
        for read in (read_bytes, read_json, read_yaml):
            with pytest.raises(ParseError, match=reason):
                read(path)
    with pytest.raises(ParseError, match=r"large: is larger than 1000 bytes"):
        read_bytes(tmp_path / "large", 1000)
    with pytest.raises(ParseError, match=r"large: is larger"):
        read_yaml(tmp_path / "large")
