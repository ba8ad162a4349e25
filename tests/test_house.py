"""The house rules, checked on every file: who imports whom, what the loss brings along, how large things are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("d2sm", "pipelines", "tuning", "cluster")  # each may import itself and those before it
FILES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
HEAVY = {"ray", "mlflow", "pandas", "pydantic", "skimage", "timm"}


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """The first word of every module that a file imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.relative_to(ROOT).parts[0] if node.level else (node.module or "").split(".")[0]


def test_there_are_files() -> None:
    assert len(FILES) > 30
    assert "pipelines" in set(imports(ROOT / "pipelines/train.py"))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_one_way(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"tests"}
    assert not above & set(imports(path))


@pytest.mark.parametrize("path", [path for path in FILES if ids(path).startswith("d2sm/")], ids=ids)
def test_the_loss_imports_no_pipeline(path: Path) -> None:
    # scikit-image and timm may stand within a function, which only those call who have them.
    assert not (HEAVY - {"skimage", "timm"}) & set(imports(path))


def test_importing_d2sm_brings_nothing_heavy() -> None:
    code = f"import sys, d2sm; print(*sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    }
    assert not {name: lines for name, lines in long.items() if lines > 80}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_pins_are_those_of_the_project() -> None:
    """Every line is name==version, and every dependency is pinned within what the project allows."""
    path = ROOT / "pins.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there yet")
    from packaging.requirements import Requirement

    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pins: dict[str, str] = {}
    for line in filter(None, lines):
        found = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)(\s*;.*)?", line)
        assert found, line  # no URLs, no ranges, no options
        assert normal(found[1]) not in pins, f"{line}: pinned twice"
        pins[normal(found[1])] = found[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for many in project["optional-dependencies"].values() for one in many)]
    for requirement in map(Requirement, wanted):
        name = normal(requirement.name)
        if name != project["name"]:
            assert name in pins, f"{requirement}: not pinned"
            assert requirement.specifier.contains(pins[name]), f"{requirement}: pinned at {pins[name]}"


def test_the_installed_packages_are_all_of_them() -> None:
    """A folder that is missing from `packages` works in a checkout and is absent from a wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {ids(path.parent).replace("/", ".") for path in FILES}
