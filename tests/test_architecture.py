"""The structure of the code, checked on every file: who may import whom, no circles, no heavy import too early."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("d2sm", "pipelines", "tuning", "cluster")  # each may import itself and those before it
# Inside pipelines/: each may import itself and those before it. The first and the last are files of its top folder.
ROOMS = (
    "config", "networks", "runtime", "data", "scenes", "runs", "inference", "tracking", "training", "comparison",
    "verbs",
)  # fmt: skip
CONFIG = ("config", "sections", "recipes", "secrets", "text", "parsing", "callables")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SHARED = (
    ".",
    "helpers",
    "foreign",
    "benchmarks",
    "fixtures",
    "gpu",
)  # folders of tests/ that stand for none of the code
HEAVY = {"ray", "mlflow", "pandas", "pydantic", "skimage", "timm"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, within functions too; `from a import b` gives a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = str(node.module)
            names = {f"{module}.{name.name}" for name in node.names}
            modules = {name for name in names if is_module(name)}
            found |= modules | ({module} if names - modules else set())
    return frozenset(found)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room_of(module: str) -> str | None:
    """The room of a module of pipelines/; None for other packages' and for pipelines itself."""
    first, *rest = module.split(".")
    if first != "pipelines" or not rest:
        return None
    if rest[0] in CONFIG:
        return "config"
    return rest[0] if (ROOT / "pipelines" / rest[0]).is_dir() else "verbs"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (Tarjan's strongly connected components of more than one)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in number:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in number:
            visit(node)
    return found


def test_there_are_files() -> None:
    assert len(FILES) > 30
    assert "pipelines.training.state" in imports(ROOT / "pipelines/training/loop.py")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    above = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests"}
    assert not {name for name in imports(path) if name.split(".")[0] in above}


@pytest.mark.parametrize("path", [path for path in FILES if room_of(module_of(path))], ids=relative)
def test_rooms_import_one_way(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in ROOMS, f"{room}: a new folder of pipelines/ takes its place in ROOMS"
    upward = {
        name: other for name in imports(path) if (other := room_of(name)) and ROOMS.index(other) > ROOMS.index(room)
    }
    assert not upward


@pytest.mark.parametrize("path", [path for path in FILES if not relative(path).startswith("d2sm/")], ids=relative)
def test_what_is_printed_goes_through_one_place(path: Path) -> None:
    """`pipelines.text.show` escapes what a terminal might obey; the two others print what is escaped, or a version."""
    if relative(path) in ("pipelines/text.py", "cluster/cli/terminal.py", "cluster/cli/parser.py"):
        return
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_nothing_imports_in_a_circle() -> None:
    ours = {module_of(path): path for path in FILES}
    arrows = {
        module: {name for name in imports(path) if name in ours and name != module} for module, path in ours.items()
    }
    assert circles(arrows) == []


@pytest.mark.parametrize("path", [path for path in TESTS if path.name.startswith("test_")], ids=relative)
def test_no_test_imports_another(path: Path) -> None:
    assert not {name for name in imports(path) if re.search(r"(^|\.)test_", name)}


def test_tests_mirror_the_code() -> None:
    """A folder of tests stands for a folder of the code; what is shared by tests is in helpers/."""
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in TESTS}
    own = {folder for folder in folders if folder.split("/")[0] not in SHARED}
    assert not {folder for folder in own if not (ROOT / folder).is_dir()}


@pytest.mark.parametrize("path", [path for path in FILES if relative(path).startswith("d2sm/")], ids=relative)
def test_the_loss_imports_no_pipeline(path: Path) -> None:
    assert not (HEAVY - {"timm"}) & {name.split(".")[0] for name in imports(path)}


def test_the_loss_imports_what_its_installation_brings() -> None:
    """`pip install .` without extras: the dependencies, and what these require themselves; within functions too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {normal(re.split(r"[^\w.-]", one)[0]) for one in project["dependencies"]}
    for name in sorted(brought):
        required = [one for one in metadata.requires(name) or () if "extra ==" not in one]
        brought |= {normal(re.split(r"[^\w.-]", one)[0]) for one in required}
    found = set()
    for path in (path for path in FILES if relative(path).startswith("d2sm/")):
        by_name = re.findall(r"""import_module\("([\w.]+)"\)""", path.read_text())
        found |= {name.split(".")[0] for name in (*imports(path), *by_name)}
    packages = metadata.packages_distributions()
    others = found - set(sys.stdlib_module_names) - {"d2sm"}
    assert {"torch", "PIL", "timm", "safetensors"} <= others
    assert not {name for name in others if not brought & set(map(normal, packages.get(name, ())))}


@pytest.mark.parametrize("module", ["d2sm", "pipelines.data.index", "tuning.run", "cluster.cli.main"])
@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_deprecated_call_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    """pyproject.toml says so to pytest; in other packages it stays unseen."""

    def warn(name: str) -> None:
        exec("import warnings; warnings.warn('will be gone', category)", {"__name__": name, "category": category})

    with pytest.raises(category, match="will be gone"):
        warn(module)
    warn("pandas.core")
    warn("d2smother")


def test_importing_d2sm_brings_nothing_heavy() -> None:
    code = f"import sys, d2sm; print(*sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


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
    assert listed == {relative(path.parent).replace("/", ".") for path in FILES}
