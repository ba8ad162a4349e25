"""From the workers to the driver: log entries, one tidy line, and MLflow."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

Entry = dict[str, Any]
WAITING = 0.1  # share of the time beyond which waiting for data is worth a warning


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds the workers' entries until the driver has them; a worker never waits for it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.gone = 0
        self.ending = False
        self.reason: str | None = None

    def put(self, entry: Entry) -> None:
        self.entries.append(entry)

    def end(self) -> None:
        """The driver wants the run to end."""
        self.ending = True

    def ends(self) -> bool:
        return self.ending

    def fail(self, reason: str) -> None:
        """A worker cannot go on, and would fail again if it were started again."""
        self.reason = reason

    def failed(self) -> str | None:
        return self.reason

    def after(self, known: int) -> list[Entry]:
        """The entries after the first `known`, which may be forgotten; those of an answer that was lost come again."""
        del self.entries[: known - self.gone]
        self.gone = known
        return list(self.entries)


class Reader:
    """A thread that hands the mailbox's entries to `on_entry`, in order, while the block runs.

    Args:
        on_entry: called with an entry.
        between: called after each look into the mailbox.
    """

    def __init__(
        self, on_entry: Callable[[Entry], None], between: Callable[[], None] = lambda: None, *, every: float = 0.5
    ) -> None:
        self.on_entry, self.between, self.every = on_entry, between, every
        # Beside the driver: on another node it would be lost with that node, and the run would go on without a log.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self.known = 0
        self.done = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def __enter__(self) -> Reader:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.done.set()
        self.thread.join()
        ray.kill(self.mailbox)
        if self.error is not None and kind is None:
            raise self.error

    def _loop(self) -> None:
        while True:
            last = self.done.wait(self.every)
            try:
                entries = ray.get(self.mailbox.after.remote(self.known), timeout=30)
            except ray.exceptions.RayError:
                entries = []  # a busy machine; if Ray itself is gone, training says so
            self.known += len(entries)
            try:
                for entry in entries:
                    self.on_entry(entry)
                self.between()
            except Exception as error:  # raised where the block ends; a thread's own would be lost
                self.error = error
                return
            if last:
                return


class Waiting:
    """Says once a run that the workers wait for data, and what helps, when that takes more than a tenth of the time.

    The first entry of a start is left out, since the stream starts within it, and so is what took less than `least`
    seconds.
    """

    def __init__(self, remedy: str, *, least: float = 10.0) -> None:
        self.remedy, self.least = remedy, least
        self.step: int | None = None
        self.waited = self.seconds = 0.0
        self.said = False

    def begins(self) -> None:
        """Workers start, or start again."""
        self.step = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """The line to show after a log entry, if any."""
        before, self.step = self.step, step
        if before is None or self.said or step <= before:
            return None
        seconds = (step - before) / metrics["steps_per_second"]
        self.seconds += seconds
        self.waited += metrics["data_wait"] * seconds
        share = self.waited / self.seconds
        self.said = share > WAITING and self.seconds >= self.least
        return f"the workers waited for data for {share:.0%} of the time; {self.remedy}" if self.said else None


class Restarts:
    """Says when a run's workers are lost and when they were started again, that nobody has begun for long, and, once
    the run is further than before, how long it was held up."""

    def __init__(self, *, patience: float = 60.0) -> None:
        self.count, self.lost, self.patience = 0, 0.0, patience
        self._workers = 0
        self._since: float | None = time.monotonic()  # when workers were asked for that have not begun
        self._reached: tuple[int, float] | None = None  # the newest step that was logged, and when
        self._behind = False

    def begins(self, step: int, workers: int) -> str | None:
        """What to show when `workers` workers begin at a step; nothing for the first ones."""
        before, self._workers = self._workers, workers
        self._since = None
        if not before:
            self._reached = (step, time.monotonic())
            return None
        self.count += 1
        self._behind = True
        changed = f" instead of {before}" if workers != before else ""
        return f"started again at step {step}, on {workers} worker{'s' * (workers > 1)}{changed}"

    def breaks(self, ranks: Sequence[int]) -> str | None:
        """What to show when Ray finds that workers died; the others end with them."""
        if self._since is not None:
            return None
        self._since = time.monotonic()
        which = f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        return f"lost {which} of {self._workers}; goes on from its last checkpoint where it may (train.max_failures)"

    def waits(self) -> str | None:
        """What to show, once, when no worker has begun for long."""
        if self._since is None or time.monotonic() - self._since < self.patience:
            return None
        self._since = math.inf
        return f"no worker has begun for {self.patience:.0f} s"

    def reaches(self, step: int, steps_per_second: float) -> str | None:
        """What to show at a log entry further than all before."""
        assert self._reached is not None
        (before, then), now = self._reached, time.monotonic()
        self._reached = (step, now)
        if not self._behind:
            return None
        self._behind = False
        seconds = max(0.0, now - then - (step - before) / steps_per_second)
        self.lost += seconds
        return f"further than before, at step {step}; {seconds:.0f} s were lost"


class Line:
    """One progress line on a terminal; a plain line every half minute elsewhere."""

    def __init__(self, what: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.what, terminal = what, sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=what,
            disable=quiet,
            mininterval=0.2 if terminal else 30,
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}"
            if terminal
            else "{desc} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def to(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        """Move to a step and show some numbers."""
        if numbers:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
        self.bar.update(max(0, step - self.bar.n))

    def say(self, text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=sys.stderr)
