"""d2sm/README.md says what is true: its Python runs, its files exist, and its recipes lead to what they promise."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "d2sm/README.md").read_text()


def blocks(text: str) -> list[str]:
    """The Python code in a text, without the indentation of a list's item."""
    return [dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.S | re.M)]


def test_examples_run() -> None:
    examples = "\n".join(code for code in blocks(TEXT) if code.startswith(">>>"))
    runner = doctest.DocTestRunner()
    runner.run(doctest.DocTestParser().get_doctest(examples, {}, "README", "d2sm/README.md", 0))
    assert runner.tries >= 15 and runner.failures == 0


def test_files_exist_and_none_is_missing() -> None:
    table = TEXT[TEXT.index("| file |") : TEXT.index("`pipelines/` may import")]
    rows = [row for row in table.splitlines() if row.startswith("|")]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", " ".join(row.split("|")[1] for row in rows))
    assert named and all((ROOT / "d2sm" / name).exists() for name in named)
    assert {path.name for path in (ROOT / "d2sm").glob("*.py")} - {"__init__.py"} <= set(named)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a backbone", "an objective", "a degradation"])
def test_following_a_recipe_word_by_word(kind: str, tmp_path: Path) -> None:
    """In a copy: the file is written, the entry is added, and the tests that the recipe names run and pass."""
    for package in ("d2sm", "pipelines", "tuning", "cluster", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = TEXT.split(f"## How to add {kind}\n")[1].split("\n## ")[0]
    code, entry = blocks(recipe)
    path = re.match(r"# (d2sm/\S+\.py)\n", code)
    assert path
    (tmp_path / path[1]).write_text(code.removeprefix(path[0]))
    found = re.search(r"at the end of `(\w+)` in `(\S+)`", recipe)
    assert found
    file = tmp_path / found[2]
    before, after = file.read_text().split(f"{found[1]}: dict", 1)
    entries, rest = after.split("\n    )\n", 1)
    file.write_text(f"{before}{found[1]}: dict{entries}\n        {entry.rstrip()},\n    )\n{rest}")
    command = re.search(r"`python (-m pytest .*)`", recipe)
    assert command
    done = subprocess.run(
        [sys.executable, *shlex.split(command[1])], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r" [1-9]\d* passed", done.stdout), done.stdout
