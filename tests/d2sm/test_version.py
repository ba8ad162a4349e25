"""d2sm.__version__ is that of the code that was imported, wherever it was imported from."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import d2sm

ROOT = Path(__file__).resolve().parents[2]


def version_of(folder: Path) -> str:
    code = "import d2sm; print(d2sm.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder, env={"PYTHONPATH": ""}
    )
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package without its pyproject.toml, in a folder that python looks in first."""
    shutil.copytree(ROOT / "d2sm", tmp_path / "d2sm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_checkout_has_the_version_of_its_pyproject(copy: Path) -> None:
    """Also where an older one is installed, as here: the environment's own install is of another folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert d2sm.__version__ == project["version"]
    (copy / "pyproject.toml").write_text('[project]\nname = "d2sm"\nversion = "7.8.9"\n')
    assert version_of(copy) == "7.8.9"


def test_an_install_has_the_version_of_its_metadata(copy: Path) -> None:
    info = copy / "d2sm-4.5.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: d2sm\nVersion: 4.5.6\n")
    (info / "RECORD").write_text("d2sm/__init__.py,,\n")
    assert version_of(copy) == "4.5.6"


def test_a_copy_that_says_nothing_does_not_borrow_the_version_of_an_install(copy: Path) -> None:
    (copy / "pyproject.toml").write_text('[project]\nname = "another"\nversion = "7.8.9"\n')
    assert version_of(copy) == "0+unknown"


def test_types_are_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert (ROOT / "d2sm/py.typed").is_file() and "py.typed" in data["d2sm"]
