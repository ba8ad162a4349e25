"""Files as a stranger, or a bad disk, would change them: what is drawn by the fuzzer (tests/test_fuzz.py)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

Change = Callable[[bytes], bytes]

TEXTS = (
    "", "x", "\0", "\x1b[2J\x1b]0;title\x07", "\u202ea\nb", "\ud800", "../../outside", "/etc/passwd", "a/b", ".", "..",
    "step-best", "x" * 10_000, "nan", "null", "0", "-1", "2026-99-99", "[", "{}", "*a", "&a [*a]", "!!python/none", "=",
    "http://user:secret@host/", "models:/x", "file:///etc", "🙂", "é", "$\\frac", "[/red]", "<img src=x>", "%s%n{0}",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**30, 10**5000, 0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"),
    float("inf"), True, False,
)  # fmt: skip


def _nested(kind: type, depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = [tree] if kind is list else {"a": tree}
    return tree


VALUES: tuple[Any, ...] = (
    None, *TEXTS, *NUMBERS, [], [None], [[]], {}, {"a": {}}, {"": 1}, ["x"] * 1000, [0.5] * 3, _nested(list, 100),
    _nested(dict, 100), {"\0": 1}, {"\x1b[2J": {"\x1b[2J": "\x1b[2J"}},
)  # fmt: skip
POSITIONS = st.integers(0, 2**30)  # of a node or a byte, modulo their number

# Text of YAML that means more than it says.
YAML_TEXTS = (
    "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b]\n", "<<: {a: 1}\n", "- " * 900, "[" * 900, "{" * 900,
    "? [a]\n: b\n", "a: 1\n---\nb: 2\n", "!!timestamp x\n", "a: !!binary x\n", "x: " + "9" * 5000, "x: 1" + ":1" * 5000,
    "\t", "%YAML 9.9\n---\n", "a: 'x", "\xef\xbb\xbfa: 1", "a: |\n  " + "x" * 1000, "@", "a: 2026-13-45 99:99:99",
    ": :",
)  # fmt: skip


def changed_bytes() -> st.SearchStrategy[Change]:
    """Any content, or one to four bytes flipped, removed, inserted, repeated, or the end cut off."""
    edit = st.one_of(
        st.tuples(st.just("flip"), POSITIONS, st.integers(1, 255)),
        st.tuples(st.just("cut"), POSITIONS, st.just(0)),
        st.tuples(st.just("remove"), POSITIONS, st.integers(1, 64)),
        st.tuples(st.just("insert"), POSITIONS, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("number"), POSITIONS, st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\x7f" + b"\xff" * 7])),
        st.tuples(st.just("repeat"), POSITIONS, st.integers(1, 64)),
    )
    edits = st.lists(edit, min_size=1, max_size=4).map(lambda chosen: lambda content: _edited(content, chosen))
    whole = st.one_of(st.binary(max_size=64), st.sampled_from([b"", b"\0" * 1000])).map(lambda new: lambda _: new)
    return st.one_of(edits, edits, edits, whole)


def _edited(content: bytes, edits: list[tuple[str, int, Any]]) -> bytes:
    for what, position, value in edits:
        at = position % (len(content) + 1)
        if what == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ value]) + content[at + 1 :]
        elif what == "cut":
            content = content[:at]
        elif what == "remove":
            content = content[:at] + content[at + value :]
        elif what == "insert":
            content = content[:at] + value + content[at:]
        elif what == "number":
            content = content[:at] + value + content[at + len(value) :]
        elif what == "repeat":
            content = content[:at] + content[at : at + value] * 3 + content[at + value :]
    return content


def changed_tree(load: Callable[[bytes], Any], dump: Callable[[Any], bytes]) -> st.SearchStrategy[Change]:
    """One to three nodes of a tree replaced, removed, renamed or doubled."""
    edit = st.tuples(
        st.sampled_from(["alike", "alike", "alike", "replace", "replace", "remove", "rename", "double"]),
        POSITIONS,
        st.sampled_from(VALUES),
    )

    def change(edits: list[tuple[str, int, Any]]) -> Change:
        def changed(content: bytes) -> bytes:
            tree = load(content)
            for what, position, value in edits:
                tree = _changed(tree, what, position, value)
            return dump(tree)

        return changed

    return st.lists(edit, min_size=1, max_size=3).map(change)


def _changed(tree: Any, what: str, position: int, value: Any) -> Any:
    root = [copy.deepcopy(tree)]
    places = list(_places(root))
    parent, key = places[position % len(places)]
    if what == "alike":  # of the same type, so that it gets further
        alike = [known for known in VALUES if type(known) is type(parent[key])]
        value = alike[position % len(alike)] if alike else value
    if what == "remove" and parent is not root:
        del parent[key]
    elif what == "rename" and isinstance(parent, dict):
        parent[str(value)[:100]] = parent.pop(key)
    elif what == "double" and isinstance(parent, list) and parent is not root:
        parent.append(parent[key])
    else:
        parent[key] = copy.deepcopy(value)
    return root[0]


def _places(node: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree: a list or dictionary, and an index or key of it."""
    items = list(enumerate(node)) if isinstance(node, list) else list(node.items()) if isinstance(node, dict) else []
    for key, value in items:
        yield node, key
        if depth < 20:
            yield from _places(value, depth + 1)


def json_changes() -> st.SearchStrategy[Change]:
    tree = changed_tree(json.loads, lambda tree: _without_limit(json.dumps, tree).encode())
    return st.one_of(tree, tree, tree, changed_bytes())


def yaml_changes() -> st.SearchStrategy[Change]:
    tree = changed_tree(yaml.safe_load, lambda tree: _without_limit(yaml.safe_dump, tree).encode())
    added = st.tuples(POSITIONS, st.sampled_from(YAML_TEXTS)).map(
        lambda chosen: lambda content: _edited(content, [("insert", chosen[0], chosen[1].encode())])
    )
    alone = st.sampled_from(YAML_TEXTS).map(lambda text: lambda _: text.encode())
    return st.one_of(tree, tree, tree, added, alone, changed_bytes())


def _without_limit(dump: Callable[[Any], str], tree: Any) -> str:
    """Python refuses to write a number of 5,000 digits, which a stranger does not."""
    text = dump(_marked(tree))
    return text.replace(f'"{_HUGE}"', "1" + "0" * 5000).replace(_HUGE, "1" + "0" * 5000)


_HUGE = "a number of 5001 digits"


def _marked(tree: Any) -> Any:
    if isinstance(tree, int) and not isinstance(tree, bool) and abs(tree) > 10**4000:
        return _HUGE
    if isinstance(tree, dict):
        return {key: _marked(value) for key, value in tree.items()}
    return [_marked(value) for value in tree] if isinstance(tree, list) else tree
