"""d2sm/README.md says what is true: its Python runs, its files exist. Its recipes: pipelines/test_additions.py."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from textwrap import dedent

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
