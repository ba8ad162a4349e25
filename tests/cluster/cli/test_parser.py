"""The whole command line: every verb explains itself and runs a function that is there, without heavy imports."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.cli.parser import parser

ROOT = Path(__file__).resolve().parents[3]


def verbs(one: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb that runs, such as "jobs list", with its options."""
    inner = [action for action in one._actions if isinstance(action, argparse._SubParsersAction)]
    for action in inner:
        for name, verb in action.choices.items():
            yield from verbs(verb, (*words, name))
    if not inner:
        yield " ".join(words), one


VERBS = dict(verbs(parser()))


def test_these_are_the_verbs() -> None:
    assert set(VERBS) == {
        "demo", "scenes", "prepare", "train", "tune", "table", "evaluate", "denoise", "report", "figures", "check",
        "models list", "models show", "models promote", "models compare", "submit", "jobs list", "jobs logs",
        "jobs wait", "jobs stop", "cluster up", "cluster status", "cluster add", "cluster kill", "cluster down",
    }  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_a_function_and_explains_its_options(name: str) -> None:
    module, _, function = VERBS[name].get_default("run").partition(":")
    assert list(signature(getattr(import_module(module), function)).parameters) == ["args"]
    silent = [action.dest for action in VERBS[name]._actions if not action.help]
    assert not silent


@pytest.mark.parametrize("name", ["", "models", "jobs", "cluster", *VERBS])
def test_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert f"usage: d2sm {name}".rstrip() in out
    assert len(out.splitlines()) > 5


def test_the_command_line_loads_nothing_heavy() -> None:
    """Help for every verb, and every verb's own file: torch, Ray, MLflow and pydantic wait until a verb runs."""
    handlers = sorted({verb.get_default("run").partition(":")[0] for verb in VERBS.values()})
    code = (
        "import sys\nfrom importlib import import_module\nfrom cluster.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['--version']):\n"
        "    try: main(words)\n    except SystemExit: pass\n"
        f"for name in {handlers}: import_module(name)\n"
        "print('loaded', *sorted({'torch', 'ray', 'mlflow', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1].split() == ["loaded"]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    import d2sm

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"d2sm {d2sm.__version__}\n"
