"""One trial of a sweep: training up to each point at which it is measured, and the evaluation of its model at the end.

Before the end it is measured by the validation of its last step (`pipelines.training.validation`). Between these points
a trial holds no worker and no placement group, so that a scheduler can stop it there without leaving any behind. What
it measured is kept in its folder: a restarted trial repeats no steps and no measurements.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ray import tune
from typing_extensions import TypedDict

from pipelines import config as configs
from pipelines import parsing
from pipelines.config import Config
from pipelines.data import plan, splits
from pipelines.data.splits import training_images
from pipelines.evaluate import evaluate
from pipelines.experiment import save_results, send_results
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.names import check_name
from pipelines.runtime import files, session
from pipelines.text import one_line
from pipelines.tracking.store import TrackingError
from pipelines.train import Trained, fit
from pipelines.training.tracked import open_run
from tuning.space import SpaceError

T = TypeVar("T")


class Settings(TypedDict):
    """What sweep.json says beside the arguments of the sweep: its metrics, its space, the number of trials, ..."""

    metrics: list[str]
    space: dict[str, Any]
    count: int
    budgets: list[int]
    evaluates: bool


SETTINGS, BASE = "sweep.json", "base.yaml"  # in the sweep's folder
FAILED = "failed.json"  # in a trial's folder
_REPORTS = "reports"  # in there: a file for each point at which the trial was measured
RETRY_SECONDS = 15 * 60  # for which a trial waits for the tracking server to come back


def trial_name(number: int) -> str:
    """The folder and the MLflow name of a trial."""
    return f"{number:03d}"


def number_of(folder: Path, trial_id: str, config: Mapping[str, Any]) -> int:
    """A trial's number, as it was at its start.

    Population-based training gives a trial the whole config of another, number included, so each trial notes its own.
    """
    file = folder / "numbers" / trial_id
    return int(file.read_text()) if file.exists() else int(config["trial"]["number"])


def reports_of(folder: Path, number: int) -> dict[int, dict[str, float]]:
    """What a trial has reported so far in its first run, by budget.

    Raises:
        SpaceError: a report is damaged.
    """
    return {int(file.stem): _report(file) for file in sorted((folder / trial_name(number) / _REPORTS).glob("*.json"))}


def _report(file: Path) -> dict[str, float]:
    return parsing.read_json(file, dict[str, float], error=SpaceError, remedy="remove the file")


class _Position(TypedDict):
    """How far a trial is: the name of its run, and how often it was measured."""

    number: int
    name: str
    rung: int


def settings_of(folder: Path) -> Settings:
    """What a sweep's folder says of it.

    Raises:
        SpaceError: sweep.json cannot be read.
    """
    remedy = "the sweep cannot be resumed; choose another --name"
    found = parsing.read_json(folder / SETTINGS, Settings, error=SpaceError, remedy=remedy)
    if not found["budgets"] or not found["metrics"] or min(found["budgets"]) < 1:
        raise SpaceError(f"{folder / SETTINGS}: names no metric or no budget; {remedy}")
    return found


def step_at(budget: int, whole: int, steps: int) -> int:
    """The step at which a trial of so many steps is measured after this part of the whole budget."""
    return max(1, steps * budget // whole)


class Trial(tune.Trainable):
    """What Ray Tune runs; one `step` trains up to the next point at which the trial is measured, and measures it.

    `config` holds "folder", the sweep's, and "trial": its "number" and its "point".
    """

    def setup(self, config: dict[str, Any]) -> None:
        session.quiet()
        self.folder = Path(config["folder"])
        self.number, self.point = number_of(self.folder, self.trial_id, config), dict(config["trial"]["point"])
        self.name = trial_name(self.number)  # of its current run, which `load_checkpoint` may change
        self.rung = 0  # measurements so far
        with self._noting_failure():
            self.settings = settings_of(self.folder)
            (self.folder / "numbers").mkdir(exist_ok=True)
            files.write_text(self.folder / "numbers" / self.trial_id, str(self.number))

    @cached_property
    def total_steps(self) -> int:
        """Of the whole trial. Cached: indexing the images takes a while, and no key that changes them is mutable."""
        config = self.configuration()
        return plan.total_steps(config, training_images(config).num_rows)

    def step(self) -> dict[str, Any]:
        budgets = self.settings["budgets"]
        budget = budgets[self.rung]
        self.rung += 1
        with self._noting_failure():
            metrics = self._measured(budget, budgets[-1])
        return {**metrics, "budget": budget, "done": self.rung == len(budgets)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the trial's position and a copy of its run's checkpoint, which the run itself will remove in time."""
        position = {"number": self.number, "name": self.name, "rung": self.rung}
        with self._noting_failure():
            (Path(checkpoint_dir) / "place.json").write_text(json.dumps(position))
            last = _last(self.folder / self.name)
            shutil.copytree(last, Path(checkpoint_dir) / last.name)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Resume at the trial's own position or, in population-based training, from the checkpoint of another trial."""
        with self._noting_failure():
            self._load_checkpoint(checkpoint_dir)

    def _load_checkpoint(self, checkpoint_dir: str) -> None:
        position = parsing.read_json(Path(checkpoint_dir) / "place.json", _Position, error=SpaceError)
        self.rung = position["rung"]
        check_name(position["name"], "the run of a trial")
        if position["number"] == self.number:
            self.name = position["name"]
            return
        # Another trial's: a new run of this trial begins with that checkpoint.
        generation = 1 + sum(1 for _ in self.folder.glob(f"{trial_name(self.number)}-from-*"))
        self.name = f"{trial_name(self.number)}-from-{position['name'].split('-')[0]}-{generation}"
        last, run_dir = _last(Path(checkpoint_dir)), self.folder / self.name
        run_dir.mkdir(parents=True)
        self.configuration().save(run_dir / checkpoint.CONFIG)
        shutil.copytree(last, run_dir / last.name)

    def configuration(self) -> Config:
        """The configuration of the trial's current run."""
        place = {"train.storage": str(self.folder), "train.name": self.name}
        return configs.load(self.folder / BASE).replace({**self.point, **place})

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Keep why the trial fails where `live.Live` looks for it: under its own number, whichever run it is at."""
        try:
            yield
        except Exception as error:
            folder, why = self.folder / trial_name(self.number), one_line(session.cause(error), 600)
            with contextlib.suppress(OSError):  # a full disk, perhaps, which may be why it fails
                folder.mkdir(parents=True, exist_ok=True)
                files.write_text(folder / FAILED, json.dumps({"why": why}))
            raise

    def _measured(self, budget: int, whole: int) -> dict[str, float]:
        """The metrics after this part of the whole budget, from the trial's folder if they are there already.

        Raises:
            SpaceError: one of the sweep's metrics has no value.
        """
        config = self.configuration()
        file = RunFolder.of(config).path / _REPORTS / f"{budget:04d}.json"
        if file.exists() and not self._missing(metrics := _report(file)):  # an earlier version may have left one out
            return metrics
        metrics = self._measure(config, budget, whole)
        if missing := self._missing(metrics):
            raise SpaceError(
                f"metric {', '.join(missing)}: has no value at step {metrics['step']:.0f}, so this trial cannot be "
                "compared; choose another --metric, under another --name"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(metrics))
        return metrics

    def _missing(self, metrics: Mapping[str, float]) -> list[str]:
        """The sweep's metrics without a value: Ray Tune would end the whole sweep at such a report."""
        return [metric for metric in self.settings["metrics"] if metric not in metrics]

    def _measure(self, config: Config, budget: int, whole: int) -> dict[str, float]:
        part = config.replace({"train.max_steps": step_at(budget, whole, self.total_steps)})
        with RunFolder.of(part).owned():
            return self._measure_owned(part, ends=budget == whole)

    def _measure_owned(self, part: Config, *, ends: bool) -> dict[str, float]:
        validates = self.settings["evaluates"] and not ends
        trained = _retried(lambda: fit(part, quiet=True, validates=validates, given=splits.SETTLED))
        metrics = {"step": float(trained.reached), **(trained.metrics or _logged(trained))}
        if not self.settings["evaluates"]:
            return metrics
        if validates:
            return {**metrics, **(trained.validated or _measured_by_an_earlier_version(trained))}
        results = evaluate(trained.checkpoint, trained.config, quiet=True)
        save_results(trained.folder, results, step=trained.step)

        def send() -> None:
            with open_run(trained.config, trained.folder) as run:
                send_results(run, trained.folder, results)

        _retried(send)
        return metrics | results.flat()


def _logged(trained: Trained) -> Mapping[str, float]:
    """The newest log entry, where nothing was left to train: after `train.patience`, or where two measurements meet."""
    last = trained.folder.latest()
    entries = checkpoint.log(last).get("recent", []) if last else []
    return dict(entries[-1]["metrics"]) if entries else {}


def _measured_by_an_earlier_version(trained: Trained) -> Mapping[str, float]:
    """The numbers of a trial that an earlier version trained up to this point, without a validation at the end."""
    return evaluate(trained.folder.latest() or trained.checkpoint, trained.config, quiet=True).flat()


def _last(folder: Path) -> Path:
    """The checkpoint to train on from, which need not be the best one. Raises CheckpointError: there is none."""
    return checkpoint.latest(folder) or checkpoint.resolve(folder)  # which says why there is none


def _retried(action: Callable[[], T]) -> T:
    """The action's result, retried while the tracking server does not answer; training resumes from its checkpoint."""
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return action()
        except TrackingError:
            if time.monotonic() > end:
                raise
            time.sleep(3)
