"""Validation while training: what the weights so far reach on a fixed part of the evaluation images.

Every rank measures its share of the images on its own device with the weights that a checkpoint would hold. The numbers
of the single images are gathered and averaged in the order of the images, so the means do not depend on who measured
what. Nothing that training uses is changed: no random generator, no queue, no statistic of a normalisation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import nn

from d2sm.distributed import AnyRank, copy_from_first, gather_rows
from pipelines.config import Config
from pipelines.data import labels
from pipelines.data.images import ImageError
from pipelines.inference.known import Known
from pipelines.inference.measuring import Measurement, Measurer, numbers_of, score
from pipelines.inference.pool import here
from pipelines.runs.results import Results, Score
from pipelines.runtime import resources
from pipelines.text import one_line
from pipelines.tracking.measurer import measurer_of
from pipelines.training.finite import TrainingError
from pipelines.training.interrupt import StopRequest
from pipelines.training.log import Log
from pipelines.training.messages import Validated, ValidationSet, WorkerTask
from pipelines.training.standing import Standing
from pipelines.training.state import TrainState


class Validation:
    """Measures the weights of a training every `train.validate_every` steps, and at the last step.

    Args:
        task: of this worker.
        state: what is trained.
        log: of the training; it shows the speed of training without the time that validations take.
        last: the checkpoint that training resumes from; None: it begins.
        stop_request, any_rank: of the training; a stop ends a validation too.

    Attributes:
        improved_at: the last step here whose validation was the best so far, of which a checkpoint is to be kept.
        interrupted: whether a stop was requested within a validation, so that training has to end at this step.
    """

    def __init__(
        self,
        task: WorkerTask,
        state: TrainState,
        log: Log,
        last: Path | None,
        stop_request: StopRequest,
        any_rank: AnyRank,
    ) -> None:
        self.task, self.state, self.log, self.images = task, state, log, task.validation
        self.stop_request, self.any_rank = stop_request, any_rank
        self.standing = Standing.at(last, task.config, self.images.about if self.images else {})
        self.improved_at: int | None = None
        self.interrupted = False
        self._measurer: Measurer | None = None
        self._known: dict[str, Known] = {}  # of clean and noisy images, which no training changes
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self._sharing = resources.sharing(
            task.config, context.get_local_world_size(), on_gpus=task.config.train.use_gpu
        )
        for entry in self.standing.recent:  # the driver may have been killed before it recorded them
            self._send(Validated(**entry, best=self._best()))

    def after(self, step: int) -> bool:
        """Measure, if this step is one that is measured; gives whether training stops early. All ranks call it.

        A stop that the driver requests meanwhile ends the validation, and `interrupted` is then true. The training has
        to end with a checkpoint of this step; `owed` makes up for the validation when it is resumed.

        Raises:
            TrainingError: an image cannot be read, or `train.best` has no finite value; or a number of the steps since
                the last log entry is not finite.
        """
        if self.images is None or not self._is_due(step):
            return False
        self.log.gather(step)  # raises if a loss was not finite, which would be the cause of whatever is measured
        started = time.monotonic()
        metrics = self._measured(self.images, step)
        seconds = time.monotonic() - started
        self.log.paused(seconds)
        if metrics is None:
            self.interrupted = True
            return False
        if self.standing.add(step, metrics):
            self.improved_at = step
        self._send(Validated(step, metrics, self._best(), seconds))
        return self.standing.exhausted

    def owed(self, step: int) -> bool:
        """At the step of the checkpoint that training resumes from: measure what a stop has interrupted there.

        Gives whether training stops early.
        """
        done = self.standing.recent[-1]["step"] if self.standing.recent else 0
        return done < step and self.after(step)

    def _is_due(self, step: int) -> bool:
        every = self.images.every if self.images else None
        return step == self.task.steps or bool(every and step % every == 0)

    def meta(self) -> dict[str, Any]:
        """What meta.json says of it."""
        return self.standing.best.entry() if self.standing.best else {}

    def saved(self) -> dict[str, Any]:
        """What log.json keeps of it."""
        return self.standing.state() if self.images else {}

    def _measured(self, images: ValidationSet, step: int) -> dict[str, float] | None:
        """The numbers; None if a stop was requested meanwhile."""
        network = self.state.network if self.state.ema is None else self.state.ema.module
        # The first rank's are saved, and DistributedDataParallel gives them to the others before the next step.
        copy_from_first(network.buffers())
        count, lines = images.items.num_rows, []
        mine = list(range(self.rank, count, self.workers))
        with _undisturbed(network, self.state.device):
            items = images.items.take(mine).to_pylist()
            measured = here(self._measurer_of(network, images), items, threads=self.task.config.train.threads)
            for turn in range(-(-count // self.workers)):  # the same number on every rank
                try:
                    found = next(measured, [])  # none on a rank with fewer images
                except ImageError as error:
                    raise TrainingError(f"step {step}: validation: {one_line(error, 400)}") from error
                self._known |= {one["digest"]: numbers_of(one) for one in found if one["digest"]}
                if found:
                    lines.append(json.dumps([mine[turn], [one for one in found if one["kind"] == "restored"]]))
                self.any_rank.start(self.stop_request.received())
                if self.any_rank.result() and step != self.task.steps:  # the last step ends the training anyway
                    return None
        gathered = sorted(_gathered(lines, self.state.device), key=itemgetter(0))
        restored = [one for _, of_image in gathered for one in of_image]
        return _numbers(self.task.config, restored, segmented=images.segmented)

    def _measurer_of(self, network: nn.Module, images: ValidationSet) -> Measurer:
        if self._measurer is None:
            config = self.task.config
            if self.task.store_uri:
                config = config.replace({"tracking.uri": self.task.store_uri})
            self._measurer = measurer_of(
                config,
                network,
                device=self.state.device,
                segmented=images.segmented,
                sharing=self._sharing,
                known=self._known,
            )
        return self._measurer

    def _best(self) -> float | None:
        return self.standing.best.value if self.standing.best else None

    def _send(self, message: Validated) -> None:
        if self.rank == 0:
            self.task.messages.send.remote(message)


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """The network in eval mode; its modes and the random generators are then as they were before."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _gathered(lines: Sequence[str], device: torch.device) -> list[tuple[int, list[Measurement]]]:
    """Every rank's lines of JSON, on every rank."""
    text = "".join(f"{line}\n" for line in lines).encode()
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
    rows, _ = gather_rows(mine.to(device)[:, None])
    return [tuple(json.loads(line)) for line in bytes(rows.flatten().tolist()).decode().splitlines()]


def _numbers(config: Config, found: Sequence[Measurement], *, segmented: bool) -> dict[str, float]:
    """The means over the images by their names in MLflow; one that is not finite is left out."""
    levels = dict.fromkeys(one["level"] for one in found)
    classes = labels.of(config).classes
    restored = {level: score(found, "restored", level, segmented=segmented, classes=classes) for level in levels}
    clean = Score(None, None, None, {})
    return Results(len(found), "", "", "", "", noisy={}, restored=restored, clean=clean).flat()
