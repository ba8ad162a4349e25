"""Lines that Ray's C++ writes past Python do not reach the terminal; what is not Ray's does.

That what the raylet reports is kept from stdout is shown where a Ray is started, in test_session.py.
"""

from __future__ import annotations

import subprocess
import sys

CODE = r"""
import os, sys, time
from tqdm import tqdm
from pipelines.runtime import native
native.set_aside()
line = tqdm(total=3, file=sys.stderr, bar_format="{n_fmt}/{total_fmt}")
line.update(1)
os.write(2, b"[2026-11-27 09:54:01,075 E 11005 12155] rpc_client.h:204: Failed to connect to GCS within 60 sec")
os.write(2, b"onds.\n    [state-dump] ObjectStore\n*** StackTrace Information ***\n/x/ray/_raylet.so(+0x1) [0x2] f\n")
os.write(2, b"(raylet) Spilled 12 MiB\nE0000 00:00:1732 12 chttp2.cc:1] closed\n[W1127 socket.cpp:1] torch warns\n")
os.write(2, b"[2026-11-27 09:54:01,075 C 11005 12155] core_worker.cc:1: Check failed: ok \x1b[2J\n")
time.sleep(0.3)
line.close()
print("ours", file=sys.stderr)
os.write(2, b"last\n")
"""


def test_lines_of_ray_are_kept_from_the_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=30, check=True)
    lines = [line for line in done.stderr.replace("\r", "\n").split("\n") if line.strip() and "/3" not in line]
    assert lines == [
        "[W1127 socket.cpp:1] torch warns", "d2sm: Ray ended this process: Check failed: ok \\x1b[2J", "ours", "last",
    ]  # fmt: skip
