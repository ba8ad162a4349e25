"""What the driver watches while it trains: time lost waiting for data, and workers that were lost and started again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

WAITING = 0.1  # share of the time beyond which waiting for data is worth a warning


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
