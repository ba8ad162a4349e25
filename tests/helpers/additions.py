"""Following the recipes of d2sm/README.md ("How to add ...") word by word, in a copy of the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = "d2sm/README.md"
HEADINGS = [line[3:] for line in (ROOT / README).read_text().splitlines() if line.startswith("## How to add ")]


def section(heading: str) -> str:
    """The recipe under a heading."""
    return (ROOT / README).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]


def followed(headings: list[str], folder: Path) -> Path:
    """A copy of the code with steps 1 and 2 of recipes done: a file is written, an entry is added to a list."""
    for name in ("d2sm", "pipelines", "tuning", "cluster", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for heading in headings:
        text = section(heading)
        code, entry = (textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.S | re.M))
        (folder / code.splitlines()[0].removeprefix("# ")).write_text(code)
        found = re.search(r"at the end of `(\w+)` in `([\w/]+\.py)`", text)
        assert found, f"{README}, {heading}: names no list"
        append(folder / found[2], found[1], entry.strip())
    return folder


def append(path: Path, name: str, entry: str) -> None:
    """Add an entry after the last one of a list: a comprehension over a tuple, assigned to `name`."""
    source = path.read_text()
    (value,) = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
    )
    assert isinstance(value, ast.DictComp) and isinstance(value.generators[0].iter, ast.Tuple)
    last = value.generators[0].iter.elts[-1]
    assert last.end_lineno and last.end_col_offset
    lines = source.splitlines(keepends=True)
    line = lines[last.end_lineno - 1]
    lines[last.end_lineno - 1] = f"{line[: last.end_col_offset]},\n{entry}{line[last.end_col_offset :]}"
    path.write_text("".join(lines))


def named_tests(heading: str) -> tuple[list[str], str]:
    """The test files that step 3 names, and the word that picks the tests among theirs."""
    found = re.search(r"`python -m pytest ([^`]+) -k (\w+)`", section(heading))
    assert found, f"{README}, {heading}: names no tests"
    return found[1].split(), found[2]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the code in a folder."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
