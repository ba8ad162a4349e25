"""The README says what is true: its Python runs, its commands exist, its keys are keys."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from cluster.cli.main import parser
from pipelines import config as configs
from pipelines.recipes import recipes

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_training_loop_runs() -> None:
    block = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if ">>>" in code)
    test = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.tries >= 6 and runner.failures == 0
    assert test.globs == {} or float(test.globs["total"]) > 0


def commands() -> list[list[str]]:
    """Every `d2sm ...` line of the README, continued lines joined, comments left out."""
    joined = TEXT.replace("\\\n", " ")
    lines = re.findall(r"^(d2sm .*)$", joined, re.M) + re.findall(r"`(d2sm [a-z][^`]*)`", joined)
    return [line.split("#")[0].split()[1:] for line in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    args = parser().parse_args(words)
    configs.parse(getattr(args, "overrides", []))
    if getattr(args, "recipe", None):
        assert args.recipe in recipes()


def test_keys_and_files_exist() -> None:
    sections = "|".join(configs.Config.model_fields)
    named = set(re.findall(rf"\b((?:{sections})\.[a-z0-9_]+)(?==|`)", TEXT)) - {"data.py", "config.py"}
    assert named and {key for key in named if not key.endswith(".py")} <= set(configs.keys())
    for target in re.findall(r"\]\((\.[^)]+)\)", TEXT):
        assert (ROOT / target).is_file(), target
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"make ([a-z-]+)", TEXT):
        assert re.search(rf"^{goal}:", makefile, re.M), goal
