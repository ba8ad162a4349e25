"""The whole command line: every verb explains itself and runs a function that is there, without heavy imports."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from cluster.cli.arguments import NOT_SENT
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
        "demo", "scenes", "prepare", "train", "tune", "table", "study", "evaluate", "restore", "denoise", "report",
        "figures", "check", "export",
        "models list", "models show", "models promote", "models compare", "models register", "models import", "submit",
        "jobs list", "jobs logs", "jobs wait", "jobs stop", "cluster up", "cluster status", "cluster add",
        "cluster kill", "cluster down",
    }  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_a_function_and_explains_its_options(name: str) -> None:
    module, _, function = VERBS[name].get_default("run").partition(":")
    assert list(signature(getattr(import_module(module), function)).parameters) == ["args"]
    silent = [action.dest for action in VERBS[name]._actions if not action.help or action.help.startswith("(default")]
    assert not silent


@pytest.mark.parametrize("name", ["", "models", "jobs", "cluster", *VERBS])
def test_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert f"usage: d2sm {'restore' if name == 'denoise' else name}".rstrip() in out
    assert len(out.splitlines()) > 5


def test_a_group_lists_its_commands() -> None:
    for group in ("models", "jobs", "cluster"):
        about, inner = next(
            (choice.help, action.choices[group])
            for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
            for choice in action._choices_actions if choice.dest == group
        )  # fmt: skip
        assert set(about.rpartition(": ")[2].split(", ")) == {name for name, _ in verbs(inner)}


def test_what_trust_allows_is_said_for_each_command() -> None:
    """A backbone of a model is code alone, a run that is registered a server alone, a sweep pickles too."""
    about = {
        name: action.help or "" for name, verb in VERBS.items() for action in verb._actions if action.dest == "trust"
    }
    said = {
        name: tuple(word in text for word in ("import the Python", "password", "unpickle"))
        for name, text in about.items()
    }
    models = dict.fromkeys(("restore", "denoise", "export"), (True, False, False))
    others = dict.fromkeys(("train", "check", "study", "evaluate", "report", "figures"), (True, True, False))
    assert said == {**others, **models, "tune": (True, True, True), "models register": (False, True, False)}


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


@pytest.mark.parametrize(
    "words",
    [
        "evaluate RUN evaluate.limit=1 --quiet evaluate.sigmas=[50] --out r.json",
        "evaluate --quiet RUN evaluate.limit=1 --out r.json evaluate.sigmas=[50]",
        "evaluate --quiet --out r.json RUN evaluate.limit=1 evaluate.sigmas=[50]",
    ],
)
def test_options_and_words_in_any_order(words: str) -> None:
    args = parser().parse_args(words.split())
    assert (args.model, args.quiet, args.out) == ("RUN", True, Path("r.json"))
    assert args.overrides == ["evaluate.limit=1", "evaluate.sigmas=[50]"]


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.get_default("overrides") == []])
def test_every_verb_with_keys_takes_options_between_them(name: str) -> None:
    verb = VERBS[name]
    needed = {"tune": ["--recipe", "a", "--space", "b"], "table": ["--recipes", "a"]}
    about = {"evaluate": ["RUN"], "study": ["plan.yaml"]}.get(name, [])
    words = [] if about else needed.get(name, ["--recipe", "a"])
    args = parser().parse_args([name, *about, "a.b=1", "-v", "c.d=2", *words])
    assert args.verbose and args.overrides == ["a.b=1", "c.d=2"], verb


def test_words_that_argparse_could_take_for_options() -> None:
    args = parser().parse_args(["denoise", "a", "--sigma", "-3", "b", "--model", "m", "--tile", "-3"])
    assert (args.source, args.target, args.sigma, args.tile) == ("a", "b", -3.0, -3)
    args = parser().parse_args(["denoise", "--model", "m", "--", "-a", "--b"])
    assert (args.source, args.target) == ("-a", "--b")
    sent = ["train", "--recipe", "x", "a=1", "--quiet", "b=2"]
    for before in ([], ["--"]):
        args = parser().parse_args(["submit", "--address", "http://head", *before, *sent])
        assert args.words == [*before, *sent] and args.address == "http://head"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train --quite --recipe demo", "--quite: no such option; did you mean --quiet"),
        ("denoise a b --modle x", "--modle: no such option; did you mean --model"),
        ("denoise a b --modle=x", "--modle: no such option; did you mean --model"),
        ("train --conf=mine.yaml", "--conf: no such option; did you mean --config"),
        ("jobs wait x --timeout nan", "'nan': give a number from 0 on"),
        ("submit --cpus -1 -- train", "'-1': give a number from 0 on"),
        ("denoise a b", "required: --model"),
        ("evaluate --quiet", "required: model;"),
        ("tran", "'tran' (choose from"),
        ("tran", "did you mean train"),
        ("jobs lits", "did you mean list"),
        ("tune --recipe demo --space x --search opptuna", "did you mean optuna"),
        ("tune --recipe demo --space x --metric psnr.sigma25 data.root=x", "data.root=x: is no metric"),
        ("models list x", "unrecognized arguments: x"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], words: str, named: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert named in err and "--help`" in err


def test_what_says_where_something_is_is_told_from_the_rest() -> None:
    """`submit` refuses relative paths in places. An option whose help speaks of files or folders is one, or is here."""
    others = set()
    for name, verb in VERBS.items():
        places = {action.dest for action, _ in verb.get_default("places")}
        about = {action.dest: f"{action.help} {action.metavar}" for action in verb._actions}
        others |= {
            f"{name} {dest}" for dest, text in about.items()
            if dest not in places and re.search(r"\b(files?|folders?|URI|ROOT|FILE|paths?)\b", text)
        }  # fmt: skip
    sent = {other for other in others if other.split()[0] not in NOT_SENT}
    assert sent == {
        "prepare shard_mb", "train layers", "tune space", "table name", "study name", "restore format",
        "restore unclipped", "denoise format", "denoise unclipped", "export to", "models import source",
    }  # fmt: skip


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    import d2sm

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"d2sm {d2sm.__version__}\n"


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_memory_of_a_job_is_a_number_of_bytes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args(["submit", "--memory", "1000", "--", "check"]).memory == 1000
    with pytest.raises(SystemExit):
        parser().parse_args(["submit", f"--memory={text}", "--", "check"])
    assert f"--memory: '{text}': give a number of bytes" in capsys.readouterr().err
