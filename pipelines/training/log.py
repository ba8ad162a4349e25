"""The training log: sums on the device, sent to the driver as means every `train.log_every` steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from d2sm.distributed import gather_rows
from pipelines.sections import Loss
from pipelines.training.finite import check
from pipelines.training.messages import DataMissing, Message, Progress, Skipped, Started

RECENT = 100  # log entries that a checkpoint carries: far more than can be on their way to the driver
_DATA_WAIT = "data_wait"


class Log:
    """Accumulates every step's losses and gradient norms on the device, without reading them.

    A log entry describes the whole batch: at every entry the ranks' means are averaged, each weighted by its part of
    the batch. `data_wait` is that of the rank that waited longest.

    Args:
        messages: handle of the run's `MessageQueue`.
        step: the step the run is at.
        rank: this worker's; rank 0 sends the entries.
        loss: the configuration of the terms, for the message about a loss that is not finite.
    """

    def __init__(self, messages: Any, step: int, rank: int, loss: Loss) -> None:
        self.messages, self.since, self.rank, self.loss = messages, step, rank, loss
        self.sums: dict[str, Tensor] = {}
        self.recent: deque[Progress] = deque(maxlen=RECENT)
        self.waited, self.started = 0.0, time.monotonic()  # seconds waited for data, and when the entry began

    def start(self, workers: int) -> None:
        """Tell the driver the step and the number of workers that begin."""
        if self.rank == 0:
            self._send(Started(self.since, workers))

    def add(self, numbers: Mapping[str, Tensor], rank_weight: float = 1.0) -> None:
        """Add a step's numbers; for `rank_weight` see `Objective.forward`."""
        for name, number in numbers.items():
            number = number.float() if rank_weight == 1.0 else rank_weight * number.float()
            self.sums[name] = self.sums[name] + number if name in self.sums else number

    def gather(self, step: int) -> dict[str, Tensor]:
        """Every rank's sums since the last entry, (W,) by name, on every rank's CPU; `data_wait` is among them.

        Raises:
            TrainingError: one of them is NaN or infinite. After such a gradient the weights are not finite either.
        """
        if not self.sums:
            return {}
        mine = torch.stack(list(self.sums.values()))
        rows, _ = gather_rows(torch.cat([mine, torch.full_like(mine[:1], self.waited)])[None])
        # One copy to the host, because the host waits for the device at each.
        by_rank = dict(zip([*self.sums, _DATA_WAIT], rows.cpu().T, strict=True))
        check({name: column.sum() for name, column in by_rank.items()}, f"steps {self.since} to {step - 1}", self.loss)
        return by_rank

    def flush(self, step: int, lr: float) -> None:
        """Send the means since the last entry, and begin the next."""
        by_rank, steps, seconds = self.gather(step), step - self.since, time.monotonic() - self.started
        if self.rank == 0 and by_rank:
            waited = float(by_rank.pop(_DATA_WAIT).max())
            means = {name: float(column.mean()) / steps for name, column in by_rank.items()}
            means |= {"lr": lr, "steps_per_second": steps / seconds, _DATA_WAIT: waited / seconds}
            self._send_entry(Progress(step, means))
        self.sums, self.since, self.waited, self.started = {}, step, 0.0, time.monotonic()

    def paused(self, seconds: float) -> None:
        """Leave time out of the speed that the next entry shows: no steps were to be done in it."""
        self.started += seconds

    def skipped(self, files: list[list[str]]) -> None:
        """Tell the driver which images could not be read: [name, reason] pairs."""
        if files:
            self._send(Skipped({name: reason for name, reason in files}))

    def data_missing(self, seconds: float) -> None:
        """Tell the driver that this rank has waited for a row of the stream for so long."""
        self._send(DataMissing(seconds))

    def state(self, by_rank: Mapping[str, Tensor]) -> dict[str, Any]:
        """The log in a checkpoint (log.json): with it, a resumed run logs what an uninterrupted one would.

        Args:
            by_rank: from `gather`.
        """
        return {
            "since": self.since,
            "sums": {name: column.tolist() for name, column in by_rank.items()},
            "seconds": time.monotonic() - self.started,
            "recent": [asdict(entry) for entry in self.recent],
        }

    def resume(self, state: Mapping[str, Any], workers: int, device: torch.device) -> None:
        """Continue the unfinished entry of a checkpoint, and send its last entries again.

        The driver may have been killed before it recorded them; it ignores the ones it knows.

        Args:
            state: from `state`; empty for checkpoints that have none.
        """
        if not state:
            return
        # After a change of the number of workers every rank continues with the mean over the former ranks. Checkpoints
        # made before 2026-11-25 hold one number for all ranks.
        saved = {name: sums if isinstance(sums, list) else [sums] for name, sums in state["sums"].items()}
        mine = {name: sums[self.rank] if len(sums) == workers else fmean(sums) for name, sums in saved.items()}
        self.since, self.waited = state["since"], mine.pop(_DATA_WAIT, 0.0)
        self.sums = {name: torch.tensor(total, device=device) for name, total in mine.items()}
        self.started = time.monotonic() - state["seconds"]
        if self.rank == 0:
            for entry in state["recent"]:
                self._send_entry(Progress(**entry))

    def _send_entry(self, entry: Progress) -> None:
        self.recent.append(entry)
        self._send(entry)

    def _send(self, message: Message) -> None:
        self.messages.send.remote(message)
