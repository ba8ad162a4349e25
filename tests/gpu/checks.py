"""The tests that need a GPU: those marked `gpu`."""

from __future__ import annotations

import sys

import pytest

from tests.gpu.options import ROOT


def files() -> list[str]:
    """The files with tests marked `gpu`: the others import what a GPU machine may lack."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in tests if "mark.gpu" in file.read_text() and file.parent.name != "gpu"]


if __name__ == "__main__":
    # -p no:cacheprovider: the project's folder may be read-only on the GPU machine.
    sys.exit(pytest.main(["-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", *files()]))
