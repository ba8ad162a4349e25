"""The tests that need a GPU: those marked `gpu`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    # -p no:cacheprovider: the project's folder may be read-only on the GPU machine.
    sys.exit(pytest.main(["-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", str(ROOT / "tests")]))
