"""The documents say what is true: their Python runs, their commands and keys exist, their links lead somewhere."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from cluster.cli.parser import parser
from pipelines import config as configs
from pipelines.recipes import recipes
from tests.helpers.verbs import verb_names

ROOT = Path(__file__).resolve().parents[1]
ADDED = {"loss.huber"}  # by following a recipe of d2sm/README.md, which tests/d2sm/test_readme.py does
DOCUMENTS = [path for path in sorted(ROOT.rglob("*.md")) if not {".venv", "fixtures"} & set(path.parts)]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, code) of every fenced block of a language; "" for blocks without one."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.S | re.M)
    return [(relative(path), code) for path in DOCUMENTS for code in pattern.findall(path.read_text())]


EXAMPLES: dict[str, str] = {}  # of a document, all together: a later one goes on with what an earlier one made
for _name, _code in blocks("python"):
    if ">>>" in _code and _name != "d2sm/README.md":  # tests/d2sm/test_readme.py runs those
        EXAMPLES[_name] = f"{EXAMPLES.get(_name, '')}{_code}\n"
SCRIPTS = [(name, code) for name, code in blocks("python") if "/data/cityscapes" in code or '"photos"' in code]


def commands() -> list[tuple[str, str]]:
    """(document, words after `d2sm`) of every command in a block or in backticks; continued lines joined."""
    found = []
    for path in DOCUMENTS:
        joined = path.read_text().replace("\\\n", " ")
        lines = re.findall(r"^(d2sm [a-z-].*)$", joined, re.M) + re.findall(r"`(d2sm [a-z][^`]*)`", joined)
        found += [(relative(path), line.split(" #")[0].strip().removeprefix("d2sm ")) for line in lines]
    return list(dict.fromkeys(found))


def test_the_documents_are_there() -> None:
    names = {relative(path) for path in DOCUMENTS}
    rooms = ("d2sm", "pipelines", "tuning", "cluster", "tests", "tests/benchmarks")
    assert names >= {"README.md", ".github/CONTRIBUTING.md", "CHANGELOG.md", *(f"{room}/README.md" for room in rooms)}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len(commands()) > 20 and EXAMPLES and SCRIPTS


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, name, 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.tries >= 3 and runner.failures == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [  # a sweep starts Ray Train several times
        pytest.param(name, code, id=name, marks=pytest.mark.long if "tuning" in name else pytest.mark.slow)
        for name, code in SCRIPTS
    ],
)
def test_scripts_run(
    name: str, code: str, ray_session: None, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed but for the folder of Cityscapes and a training of few steps, beside a folder of photographs alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for path in sorted(scenes_root.rglob("*_leftImg8bit.png")):
        shutil.copy(path, tmp_path / "photos")
    code = code.replace("/data/cityscapes", str(scenes_root))
    steps = 9 if "tuning" in name else 2  # a sweep measures its trials after a ninth and a third of them, too
    code = re.sub(r'("data\.root": .*,)', rf'\1 "train.max_steps": {steps}, "train.num_workers": 1,', code)
    exec(compile(code, name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize(("name", "words"), commands(), ids=[f"{name}: {words}" for name, words in commands()])
def test_commands_are_understood(name: str, words: str) -> None:
    verbs = verb_names(parser())
    if words in verbs or words == "COMMAND --help":  # a command that is spoken of, without its options
        return
    args = parser().parse_args(shlex.split(words))
    configs.parse(getattr(args, "overrides", []))
    if getattr(args, "recipe", None):
        assert args.recipe in recipes()


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_what_is_named_exists(path: Path) -> None:
    text = path.read_text()
    sections = "|".join(configs.Config.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z0-9_]+)(?:=[^`]*)?`", text))
    assert {key for key in named if not key.endswith(".py")} <= set(configs.keys()) | ADDED
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"`?\bmake ([a-z][a-z-]*)`", text) + re.findall(r"^make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{goal}:", makefile, re.M), goal
    for module in re.findall(r"python3? -m ((?:tests|cluster|pipelines)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for file in re.findall(r"`((?:d2sm|pipelines|tuning|cluster|tests|\.github)/[\w./-]*)`", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link
