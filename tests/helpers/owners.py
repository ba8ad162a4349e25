"""Another process that owns a folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CODE = """
import pathlib, sys, time
from pipelines.runtime.owner import owned
with owned(pathlib.Path(sys.argv[1]), remedy=""):
    (pathlib.Path(sys.argv[1]) / "held").write_text("")
    print("owned", flush=True)
    time.sleep(120)
"""


@contextmanager
def owning(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns the folder until it is killed, at the latest when the block ends."""
    process = subprocess.Popen([sys.executable, "-c", _CODE, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"owned\n"
        yield process
    finally:
        process.kill()
        process.communicate()
