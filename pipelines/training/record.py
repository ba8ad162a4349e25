"""What the driver does with the workers' messages: the progress line, MLflow, and the list of skipped images."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ray

from pipelines import parsing
from pipelines.config import Config
from pipelines.data import manifest
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files, resources, session
from pipelines.runtime.progress import Line
from pipelines.sections import Data
from pipelines.training.messages import DataMissing, Progress, Skipped, Started, Validated, WorkersLost
from pipelines.training.monitors import DataWaitMonitor, RestartMonitor
from pipelines.training.tracked import Opening

Watch = Callable[[int, Mapping[str, float]], None]


class Recorder:
    """Records the messages of a run's workers.

    Args:
        opening: gives the MLflow run.
        line: the progress line.
        folder: the run's, where the list of skipped images is kept.
        start: the step the run is at; entries up to it are not shown again.
        watch: called with step and metrics at every new log entry.

    Attributes:
        metrics: those of the last new log entry.
    """

    def __init__(
        self, config: Config, opening: Opening, line: Line, folder: RunFolder, *, start: int, watch: Watch | None
    ) -> None:
        self.config, self.opening, self.line, self.watch, self.shown = config, opening, line, watch, start
        self.metrics: dict[str, float] = {}
        self.validated = 0  # the step of the newest validation
        self.shown_numbers: dict[str, float] = {}  # behind the progress line
        self.disk_was_full = self.data_is_missing = False
        self.data_wait, self.restarts = DataWaitMonitor(data_remedy(config)), RestartMonitor()
        self.skipped_file = folder.skipped_file
        self.skipped: dict[str, str] = {}
        if self.skipped_file.exists():
            remedy = "remove the file, which is written anew"
            self.skipped = parsing.read_json(self.skipped_file, dict[str, str], remedy=remedy)

    def __call__(self, message: Started | Progress | Validated | Skipped | DataMissing | WorkersLost) -> None:
        """Record a message."""
        match message:
            case Started(step, workers):
                self.line.interrupted()
                self.data_is_missing = False
                self.data_wait.started()
                self._say(self.restarts.started(step, workers))
            case WorkersLost(ranks):
                self._say(self.restarts.lost(ranks))
            case DataMissing(seconds):
                self._record_data_missing(seconds)
            case Skipped(reasons):
                self._record_skipped(reasons)
            case Progress(step, metrics):
                self._record_progress(step, metrics)
            case Validated():
                self._record_validation(message)

    def at_work(self) -> bool:
        """Whether workers have begun, and have not been lost since."""
        return self.restarts.running

    def poll(self) -> None:
        """Between messages: if the cluster has no room for the workers, or the disk none for Ray, say so once.

        Raises:
            TrackingError: MLflow refuses the run.
        """
        self.opening.check()
        full = session.full_disk()
        if full and not self.disk_was_full:
            self._say(full)
        self.disk_was_full = bool(full)
        if not self.config.train.local and (text := self.restarts.waiting()):
            with contextlib.suppress(ray.exceptions.RayError):  # the head node may be away too
                text = f"{text}; {resources.shortage(self.config)}"
            self._say(text)

    def _record_progress(self, step: int, metrics: dict[str, float]) -> None:
        self.opening.run.log(step, metrics)
        self.data_is_missing = False
        if step <= self.shown:  # restarted workers repeat steps
            return
        self.shown, self.metrics = step, metrics
        if self.watch is not None:
            self.watch(step, metrics)
        shown = {"loss": metrics["loss"], "d2sm": metrics.get("loss.d2sm"), "data_wait": metrics["data_wait"]}
        self.shown_numbers |= {name: value for name, value in shown.items() if value is not None}
        self.line.to(step, self.shown_numbers)
        self._say(self.data_wait.progress(step, metrics))
        if caught_up := self.restarts.progress(step, metrics["steps_per_second"]):
            self._say(caught_up)
            self.opening.run.tag("d2sm.restarts", str(self.restarts.restarts))
            self.opening.run.tag("d2sm.seconds_lost", f"{self.restarts.seconds_lost:.0f}")

    def _record_validation(self, message: Validated) -> None:
        step, metrics, best = message.step, message.metrics, message.best
        seconds = {} if message.seconds is None else {"seconds": message.seconds}
        self.opening.run.log(step, logged_as({**metrics, **seconds}))
        if step <= self.validated:  # restarted workers repeat validations
            return
        self.validated = step
        shown = self.config.train.best or next(iter(metrics), "")
        if shown in metrics:
            self.shown_numbers |= logged_as({shown: metrics[shown]})
        if best is not None:
            self.shown_numbers["best"] = best
        self.line.to(max(step, self.shown), self.shown_numbers)

    def _record_data_missing(self, seconds: float) -> None:
        if self.data_is_missing:  # another worker has said so
            return
        self.data_is_missing = True
        text = f"no crops have come for {seconds:.0f} s"
        with contextlib.suppress(ray.exceptions.RayError):  # as in `poll`
            text = f"{text}; {resources.ingest_shortage(self.config)}"
        self._say(text)

    def _record_skipped(self, reasons: dict[str, str]) -> None:
        new = {file: reason for file, reason in reasons.items() if file not in self.skipped}
        if not new:  # they come again in every epoch
            return
        self.skipped.update(new)
        for reason in new.values():
            self.line.say(f"skipped: {reason}")
        files.write_text(self.skipped_file, json.dumps(self.skipped, indent=2))
        self.opening.run.file(self.skipped_file)
        self.opening.run.tag("d2sm.skipped_images", str(len(self.skipped)))

    def _say(self, text: str | None) -> None:
        if text:
            self.line.say(f"{self.line.what}: {text}")


def logged_as(metrics: Mapping[str, float]) -> dict[str, float]:
    """A validation's metrics under the names that MLflow and the progress line have: val.psnr.sigma25."""
    return {f"val.{name}": value for name, value in metrics.items()}


def data_remedy(config: Config) -> str:
    """What helps when the workers wait for data."""
    more_cpus = f"raise train.data_cpus={config.train.data_cpus:g} where there are more CPUs"
    if manifest.is_prepared(Path(config.data.root)):
        return more_cpus
    data, usual = config.data, Data()
    splits = dict.fromkeys((data.train_split or usual.train_split, data.val_split or usual.val_split))
    options = {
        "layout": (data.layout, usual.layout),
        "labels": (data.labels, usual.labels),
        "splits": (" ".join(splits), f"{usual.train_split} {usual.val_split}"),
    }
    words = [f" --{name} {value}" for name, (value, default) in options.items() if value != default]
    prepare = f"d2sm prepare {data.root} FOLDER{''.join(words)}"
    return f"store the photographs decoded (`{prepare}`, then data.root=FOLDER), or {more_cpus}"
