"""What the driver watches during training: time lost waiting for data, and workers that died and were restarted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from pipelines.text import counted

DATA_WAIT = 0.1  # fraction of the time above which waiting for data is worth a warning


class DataWaitMonitor:
    """Warns once a run if the workers wait for data for more than a tenth of the time.

    The first log entry after each start does not count, because the stream starts up within it.

    Args:
        remedy: what helps; the end of the warning.
        min_seconds: training time before which nothing is said.
    """

    def __init__(self, remedy: str, *, min_seconds: float = 10.0) -> None:
        self.remedy, self.min_seconds = remedy, min_seconds
        self._step: int | None = None  # of the last log entry since the workers started
        self._waited = self._seconds = 0.0
        self._warned = False

    def started(self) -> None:
        """Workers start or restart."""
        self._step = None

    def progress(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """The warning, if it is due at this log entry."""
        before, self._step = self._step, step
        if before is None or self._warned or step <= before:
            return None
        seconds = (step - before) / metrics["steps_per_second"]
        self._seconds += seconds
        self._waited += metrics["data_wait"] * seconds
        fraction = self._waited / self._seconds
        self._warned = fraction > DATA_WAIT and self._seconds >= self.min_seconds
        return f"the workers waited for data for {fraction:.0%} of the time; {self.remedy}" if self._warned else None


class RestartMonitor:
    """Reports lost workers, restarts, how long a restart cost, and that no worker has started for a while.

    Args:
        patience: seconds without any worker before that is reported.

    Attributes:
        restarts: how often workers were restarted.
        seconds_lost: time lost by that, from the last log entry before a loss until the run had caught up.
    """

    def __init__(self, *, patience: float = 60.0) -> None:
        self.restarts, self.seconds_lost, self.patience = 0, 0.0, patience
        self._workers = 0
        self._waiting_since: float | None = time.monotonic()  # None while workers run, inf once it was reported
        self._newest: tuple[int, float] | None = None  # the newest step logged, and when
        self._catching_up = False

    @property
    def running(self) -> bool:
        """Whether workers have started, and none was reported lost since."""
        return self._waiting_since is None

    def started(self, step: int, workers: int) -> str | None:
        """The line to show when workers begin at a step; none at the run's first start."""
        before, self._workers = self._workers, workers
        self._waiting_since = None
        if not before:
            self._newest = (step, time.monotonic())
            return None
        self.restarts += 1
        self._catching_up = True
        changed = f" instead of {before}" if workers != before else ""
        return f"restarted at step {step} on {counted(workers, 'worker')}{changed}"

    def lost(self, ranks: Sequence[int]) -> str | None:
        """The line to show when Ray reports dead workers; none for those that end because of the first."""
        if self._waiting_since is not None:
            return None
        self._waiting_since = time.monotonic()
        which = f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        return (
            f"lost {which} of {self._workers}; restarting from the last checkpoint, if train.max_failures or a range "
            "in train.num_workers allows it"
        )

    def waiting(self) -> str | None:
        """The line to show, once, when no worker has started for `patience` seconds."""
        if self._waiting_since is None or time.monotonic() - self._waiting_since < self.patience:
            return None
        self._waiting_since = math.inf
        return f"no worker has started for {self.patience:.0f} s"

    def progress(self, step: int, steps_per_second: float) -> str | None:
        """The line to show at a log entry beyond all earlier ones: what a restart cost."""
        assert self._newest is not None
        (before, then), now = self._newest, time.monotonic()
        self._newest = (step, now)
        if not self._catching_up:
            return None
        self._catching_up = False
        seconds = max(0.0, now - then - (step - before) / steps_per_second)
        self.seconds_lost += seconds
        return f"caught up at step {step} after the restart; {seconds:.0f} s lost"
