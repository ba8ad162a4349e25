"""The training log: sums on the device, means every `train.log_every` steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from d2sm.distributed import gather_rows
from pipelines.training.finite import check
from pipelines.training.messages import Entry

RECENT = 100  # entries of the log that a checkpoint carries: far more than can be on their way


_WAITED = "data_wait"


class Log:
    """Sums of the steps' numbers, kept on the device and sent to the driver every `log_every` steps.

    What is logged is of the whole batch: the workers' numbers are averaged at every entry, each weighted by its share
    of the crops. `data_wait` is that of the worker that waited longest.
    """

    def __init__(self, actor: Any, step: int, *, speaks: bool) -> None:
        self.actor, self.speaks, self.since = actor, speaks, step
        self.sums: dict[str, Tensor] = {}
        self.recent: deque[Entry] = deque(maxlen=RECENT)
        self.waited, self.started = 0.0, time.monotonic()

    def begin(self, workers: int) -> None:
        """Say from which step on how many workers train."""
        if self.speaks:
            self.actor.put.remote({"begins": self.since, "workers": workers})

    def add(self, numbers: Mapping[str, Tensor], share: float = 1.0) -> None:
        """A step's numbers; `share` as in `Objective.forward`."""
        for name, number in numbers.items():
            number = number.float() if share == 1.0 else share * number.float()
            self.sums[name] = self.sums[name] + number if name in self.sums else number

    def gather(self, step: int) -> dict[str, Tensor]:
        """Every worker's sums, (W,) by name, on all workers' hosts; the time waited for data is among them.

        Raises:
            TrainingError: on NaN or infinity since the last entry; after such a gradient the weights are lost too.
        """
        if not self.sums:
            return {}
        mine = torch.stack(list(self.sums.values()))
        rows, _ = gather_rows(torch.cat([mine, mine.new_tensor([self.waited])])[None])
        everyone = dict(zip([*self.sums, _WAITED], rows.cpu().T, strict=True))  # once; the host waits at each look
        check({name: column.sum() for name, column in everyone.items()}, f"steps {self.since} to {step - 1}")
        return everyone

    def flush(self, step: int, lr: float) -> None:
        """Send the means since the last entry."""
        everyone, steps, seconds = self.gather(step), step - self.since, time.monotonic() - self.started
        if self.speaks and everyone:
            waited = float(everyone.pop(_WAITED).max())
            means = {name: float(column.mean()) / steps for name, column in everyone.items()}
            means |= {"lr": lr, "steps_per_second": steps / seconds, "data_wait": waited / seconds}
            self._send({"step": step, "metrics": means})
        self.sums, self.since, self.waited, self.started = {}, step, 0.0, time.monotonic()

    def state(self, everyone: Mapping[str, Tensor]) -> dict[str, Any]:
        """What goes into a checkpoint, so that a run that goes on from it logs what one without a stop would."""
        return {
            "since": self.since,
            "sums": {name: column.tolist() for name, column in everyone.items()},
            "seconds": time.monotonic() - self.started,
            "recent": list(self.recent),
        }

    def resume(self, state: Mapping[str, Any], rank: int, workers: int, device: torch.device, *, ours: bool) -> None:
        """Go on with the entry in the making, and send the last ones again: who was killed may not have passed them on.

        Args:
            state: what a checkpoint holds.
            ours: whether the checkpoint is this run's own, and not taken over from another.
        """
        if not state or not ours:
            return
        # Another number of workers goes on with the mean. Checkpoints made before 2026-11-25 hold one number for all.
        of_all = {name: sums if isinstance(sums, list) else [sums] for name, sums in state["sums"].items()}
        mine = {name: sums[rank] if len(sums) == workers else fmean(sums) for name, sums in of_all.items()}
        self.since, self.waited = state["since"], mine.pop(_WAITED, 0.0)
        self.sums = {name: torch.tensor(total, device=device) for name, total in mine.items()}
        self.started = time.monotonic() - state["seconds"]
        for entry in state["recent"]:
            self._send(entry)

    def _send(self, entry: Entry) -> None:
        if self.speaks:
            self.recent.append(entry)
            self.actor.put.remote(entry)

    def skipped(self, files: list[list[str]]) -> None:
        """Say which images could not be read."""
        if files:
            self.actor.put.remote({"skipped": files})
