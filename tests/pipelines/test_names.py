"""The names of the package: imported when they are used, and the same objects as in their modules."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pipelines


@pytest.mark.parametrize("name", pipelines.__all__)
def test_a_name_is_that_of_its_module(name: str) -> None:
    module, _, attribute = pipelines._EXPORTS[name].partition(":")
    assert getattr(pipelines, name) is getattr(import_module(module), attribute)


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, pipelines; print(*sorted({'torch', 'ray', 'mlflow', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == []


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pipelines.nonsense


def test_verbs_stay_modules() -> None:
    from pipelines import config, evaluate, recipes, registry, train

    assert all(hasattr(module, "__file__") for module in (config, evaluate, recipes, registry, train))
