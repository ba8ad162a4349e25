"""What a verb shows while it works: lines about its stages, and a progress line with the time left."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from pipelines.text import printable

_STAGES = logging.getLogger("d2sm.stages")  # the command line shows its messages on stderr (cluster/cli/terminal.py)
_T = TypeVar("_T")


def stage(text: str) -> None:
    """Say that something begins which takes seconds, such as "starting Ray". Only the command line shows it."""
    _STAGES.info("%s", printable(text))


@contextmanager
def slow_stage(text: str, *, after: float = 1.5) -> Iterator[None]:
    """Say it only if the block takes longer than `after` seconds: for what is slow with many files, else instant."""
    timer = threading.Timer(after, stage, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Line:
    """A progress bar on a terminal; elsewhere, such as in a job's log, a line of text every half minute.

    The time left is that of the steps since the first one that was shown: what happens before it, such as starting
    workers, says nothing about the steps to come. Until two steps were shown, it is "?".

    A terminal that has gone away ends the line, not the work.

    Args:
        what: shown in front: what is in progress.
        total: steps in all.
        start: steps done before.
        quiet: show no progress; `say` still prints.
    """

    def __init__(self, what: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.what, terminal = printable(what), sys.stderr.isatty()
        self.bar = _Bar(
            file=_Lasting(sys.stderr),
            total=total,
            initial=start,
            desc=self.what,
            disable=quiet,
            mininterval=0.2 if terminal else 30,
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{left}{postfix}"
            if terminal
            else "{desc} {n_fmt}/{total_fmt} {elapsed}<{left}{postfix}",
        )

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def to(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        """Show a step as done, and some numbers behind it."""
        self.bar.reached(step)
        if numbers:
            self.bar.set_postfix({printable(name): f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
        self.bar.update(max(0, step - self.bar.n))

    def over(self, things: Iterable[_T]) -> Iterator[_T]:
        """The things one after the other, each counted as a step when it is done."""
        for done, thing in enumerate(things, start=1):
            yield thing
            self.to(done)

    def interrupted(self) -> None:
        """The steps stop for a while, as when workers restart: the time left is counted afresh from the next one."""
        self.bar.first = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(printable(text), file=_Lasting(sys.stderr))


class _Lasting:
    """A stream that takes what is written to it even if nobody reads it any more; tqdm would keep its lock then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.stream == getattr(other, "stream", other))  # tqdm clears the bars of the stream it writes to

    def __hash__(self) -> int:
        return hash(self.stream)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


class _Bar(tqdm):  # type: ignore[type-arg]
    """tqdm with the field `left`: the time left at the pace since the first step that was shown."""

    first: tuple[int, float] | None = None  # that step, and when it was shown, on time.monotonic
    pace: float | None = None  # seconds a step

    def reached(self, step: int) -> None:
        """Note when a step was done."""
        if self.first is None:
            self.first = step, time.monotonic()
        elif step > self.first[0]:
            self.pace = (time.monotonic() - self.first[1]) / (step - self.first[0])

    @property
    def format_dict(self) -> dict[str, Any]:
        found = dict(super().format_dict)
        left = None if self.pace is None else max(0, (self.total or 0) - self.n) * self.pace
        return {**found, "left": "?" if left is None else self.format_interval(left)}
