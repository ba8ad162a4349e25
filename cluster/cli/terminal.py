"""The terminal under a verb: it takes any character, may close before the verb ends, and shows what takes time."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TextIO

PIPE_CLOSED = 141  # exit code: 128 + SIGPIPE, what a shell reports for `yes` in `yes | head`
STAGES = "d2sm.stages"  # logger; pipelines/runtime/progress.py writes to it
_SLOW_IMPORTS = {"torch": "PyTorch", "ray": "Ray", "mlflow": "MLflow"}


def accept_any_character() -> None:
    """Let stdout and stderr write a character that their encoding lacks as its code, such as \\xb1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def closed_streams() -> list[TextIO]:
    """Those of stdout and stderr that are pipes nobody reads any more, as after `| head`."""
    found = []
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # no file at all, as under pytest
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # reports errors alone
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                found.append(stream)
    return found


def discard(streams: Sequence[TextIO]) -> None:
    """Send what these streams still hold, and whatever is written to them later, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def stages(*, shown: bool, loading: bool) -> Iterator[None]:
    """While the block runs, show on stderr what the verb begins: a line a stage.

    Args:
        shown: False shows nothing.
        loading: also say once that a library is loaded which takes seconds.
    """
    if not shown:
        yield
        return
    logger, handler, finder = logging.getLogger(STAGES), _StageHandler(), _LoadingFinder()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    if loading:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.remove()
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _StageHandler(logging.Handler):
    """Prints above a progress line, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"d2sm: {record.getMessage()}"
        with suppress(OSError):
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)


class _LoadingFinder(MetaPathFinder):
    """Finds no module; it is asked for each before Python looks itself, and so says once that a slow one is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _SLOW_IMPORTS:
            self.remove()
            logging.getLogger(STAGES).info("loading %s", _SLOW_IMPORTS[fullname])
        return None

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
