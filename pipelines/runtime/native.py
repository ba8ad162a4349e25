"""What libraries write past this project: Ray's own log lines are kept from the terminal.

They would break into the progress line, and say nothing that a user could act on. Python's own stderr gets the
terminal to itself; what is written to file descriptor 2 goes through a pipe, and lines that are not Ray's are shown.
To stdout Ray prints what its raylet reports, from a thread of its own; that thread's text is dropped.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
from contextlib import suppress
from typing import Any, TextIO

from pipelines.text import one_line, show

# "[2026-11-27 09:54:01,075 E 11005 12155] rpc_client.h:204: ...", "(raylet) ...", and gRPC's "E0000 00:00:17...".
_RAY = re.compile(
    rb"(\x1b\[\d+m)?(\[\d{4}-\d\d-\d\d [\d:,.]+ [A-Z] \d+ \d+\]|\((raylet|gcs_server|autoscaler|pid=)|"
    rb"[DIWEF]\d{4} \d\d:\d\d:|WARNING: All log messages before absl)"
)
_FATAL = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,.]+ C \d+ \d+\] *(\S+:\d+: *)?(?P<text>.*)")
_MORE = re.compile(rb"\s+\[state-dump\]|\*\*\* |\S*/_raylet\.so|\s+@ |\S*\.so(\.\d+)*\(")  # of several lines


_REPORTS = "ray_listen_error_messages"  # Ray's thread that prints to stdout, whatever `log_to_driver` is


def set_aside() -> None:
    """Begin with that; until the end of the process."""
    sys.stdout = _WithoutReports(sys.stdout)  # type: ignore[assignment]
    try:
        if sys.stderr.fileno() != 2:
            return
    except (AttributeError, OSError, ValueError):  # no stderr, or none that is a file
        return
    before = sys.stderr
    terminal = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding=before.encoding, errors=before.errors)
    reader = threading.Thread(target=_pass_on, args=(read,), name="native lines", daemon=True)
    reader.start()

    def put_back() -> None:
        os.dup2(terminal, 2)
        reader.join(0.2)  # processes that Ray started may hold the pipe open

    atexit.register(put_back)


class _WithoutReports:
    """Stdout, but for what Ray's thread prints there."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name == _REPORTS else self.stream.write(text)


def _pass_on(read: int) -> None:
    rest = b""
    while new := os.read(read, 65536):
        *lines, rest = (rest + new).split(b"\n")
        for line in lines:
            _line(line)
    if rest:
        _line(rest)


def _line(line: bytes) -> None:
    if fatal := _FATAL.match(line):
        line = b"d2sm: Ray ended this process: " + fatal["text"]
    elif _RAY.match(line) or _MORE.match(line):
        return
    text = one_line(line.decode(errors="replace"), None) if fatal else line.decode(errors="replace")
    with suppress(OSError, ValueError):
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            with tqdm.external_write_mode(file=sys.stderr):  # above a progress line
                show(text, file=sys.stderr)
        else:
            show(text, file=sys.stderr)
