"""The packages: built without a warning, complete, and working where nothing of the checkout is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from d2sm import __version__

ROOT = Path(__file__).resolve().parents[1]
CODE = ("d2sm", "pipelines", "tuning", "cluster")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pins.txt",
         ".gitignore", ".pre-commit-config.yaml")  # fmt: skip
# As `python -m build --no-isolation` calls setuptools.
HOOK = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"
# What a run records of its code, where no git is.
RECORDED = """
import json, sys
from pathlib import Path
from cluster import jobs
from pipelines import tracking
import cluster, d2sm, pipelines, tuning
print(json.dumps({
    "places": [str(Path(one.__file__).parents[1]) for one in (cluster, d2sm, pipelines, tuning)],
    "provenance": tracking.provenance(), "pins": len(jobs._pins()),
}))
"""


def ours(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"


class Built(NamedTuple):
    """The sdist, unpacked; the wheel that was made from it; and what setuptools printed."""

    source: Path
    wheel: Path
    printed: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """From a copy of the files: building in the checkout would leave things there."""
    copy, made = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("made")
    for name in (*CODE, "tests", ".github"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        if (ROOT / name).exists():  # in a job's working directory some are not
            shutil.copy(ROOT / name, copy)
    printed = hook("build_sdist", copy, made)
    with tarfile.open(next(made.glob("*.tar.gz"))) as archive:
        archive.extractall(made, filter="data")
    source = made / f"d2sm-{__version__}"
    printed += hook("build_wheel", source, made)
    return Built(source, next(made.glob("*.whl")), printed)


def hook(name: str, folder: Path, made: Path) -> str:
    command = [sys.executable, "-c", HOOK.format(name), str(made)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_they_are_built_without_a_warning(built: Built) -> None:
    assert not [line for line in built.printed.splitlines() if re.search(r"(?i)warning|deprecat", line)]


@pytest.mark.slow
def test_the_sdist_is_the_checkout(built: Built) -> None:
    """Every file of the code and of the tests, with helpers, fixtures and documents."""
    for name in (*CODE, "tests", ".github"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if ours(path)}
        found = {path.relative_to(built.source) for path in (built.source / name).rglob("*")}
        assert wanted - found == set()
    assert [name for name in FILES if not (built.source / name).exists()] == []


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_its_files(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        found = set(archive.namelist())
        metadata = archive.read(f"d2sm-{__version__}.dist-info/METADATA").decode()
    needed = [path for name in CODE for path in (ROOT / name).rglob("*") if ours(path) and path.suffix != ".md"]
    assert {path.relative_to(ROOT).as_posix() for path in needed} - found == set()
    assert {f"d2sm-{__version__}.data/data/share/d2sm/{name}" for name in ("pins.txt", "CHANGELOG.md")} <= found
    assert not [name for name in found if name.startswith("tests")]
    lines = metadata.split("\n\n")[0].splitlines()
    assert {f"Version: {__version__}", "License-Expression: Apache-2.0", "Author: The D2SM project"} <= set(lines)
    assert not [line for line in lines if line.startswith(("Project-URL", "Home-page"))]


@pytest.mark.slow
def test_an_editable_install_puts_the_checkout_on_the_path(built: Built, tmp_path: Path) -> None:
    """A finder is asked after the path, and loses against the clone's own folder where that is in the current one."""
    hook("build_editable", built.source, tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        (found,) = (name for name in archive.namelist() if name.endswith(".pth"))
        assert archive.read(found).decode().strip() == str(built.source)
        assert not [name for name in archive.namelist() if name.endswith(".py")]


@pytest.fixture(scope="module")
def clean(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a new environment: the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    words = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(built.wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file comes last, and its own .pth files are not read: an editable install stays unseen.
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    yield python


def called(python: Path, folder: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(clean: Path, built: Built, tmp_path: Path) -> None:
    d2sm = str(clean.with_name("d2sm"))
    assert called(clean, tmp_path, d2sm, "--version") == f"d2sm {__version__}\n"
    assert "ffdnet_d2sm_cpu: " in called(clean, tmp_path, d2sm, "train", "--recipes")
    recorded = json.loads(called(clean, tmp_path, "-c", RECORDED))
    (own,) = clean.parents[1].glob("lib/python*/site-packages")
    assert set(recorded["places"]) == {str(own)}
    assert recorded["provenance"] == {"d2sm.version": __version__} and recorded["pins"] > 100
    # Tests of the sdist, on the wheel's code: in a folder of their own, where no other code is.
    shutil.copytree(built.source / "tests", tmp_path / "tests")
    shutil.copy(built.source / "pyproject.toml", tmp_path)
    tests = ["tests/d2sm/test_lists.py", "tests/pipelines/comparison/test_report.py"]
    assert " passed" in called(clean, tmp_path, "-m", "pytest", "-p", "no:cacheprovider", *tests)


def test_the_citation_names_this_version() -> None:
    text = (ROOT / ".github" / "CITATION.cff").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in text and f"\nlicense: {project['license']}\n" in text
    assert "2207.09302" in text
