"""One trial of a sweep: `pipelines.train.fit` up to each measuring point, then a short evaluation.

Between measuring points a trial holds no worker and no placement group, so that stopping it there leaves nothing
behind. What it measured is kept in its folder: a trial that is started again repeats neither steps nor measurements.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ray import tune

from pipelines import config as configs
from pipelines.config import Config
from pipelines.data import plan
from pipelines.data.splits import training_images
from pipelines.evaluate import evaluate
from pipelines.experiment import save_results
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files, session
from pipelines.text import one_line
from pipelines.tracking.store import TrackingError
from pipelines.train import Trained, fit
from pipelines.training.tracked import open_run

T = TypeVar("T")
SETTINGS, BASE = "sweep.json", "base.yaml"  # in the sweep's folder
FAILED = "failed.json"  # in a trial's folder
PATIENCE = 15 * 60  # seconds that a trial waits for the tracking server to come back


def name_of(number: int) -> str:
    """The folder and the MLflow name of a trial."""
    return f"{number:03d}"


def number_of(folder: Path, trial_id: str, config: Mapping[str, Any]) -> int:
    """The first number a trial had: population-based training hands it another one's whole config, number and all."""
    file = folder / "numbers" / trial_id
    return int(file.read_text()) if file.exists() else int(config["trial"]["number"])


def report_file(run_dir: Path, budget: int) -> Path:
    """Where a trial keeps what it measured after so much of its budget."""
    return run_dir / "reports" / f"{budget:04d}.json"


class Trial(tune.Trainable):
    """What Ray Tune runs. `step` is training up to the next measuring point.

    config: folder (the sweep's), trial (number, point).
    """

    def setup(self, config: dict[str, Any]) -> None:
        session.quiet()
        self.folder = Path(config["folder"])
        self.settings = json.loads((self.folder / SETTINGS).read_text())
        self.number, self.point = number_of(self.folder, self.trial_id, config), dict(config["trial"]["point"])
        (self.folder / "numbers").mkdir(exist_ok=True)
        files.write_text(self.folder / "numbers" / self.trial_id, str(self.number))
        self.name, self.rung = name_of(self.number), 0

    @cached_property
    def steps(self) -> int:
        """Of the whole trial. Looking at all images takes a while, and nothing that changes halfway changes them."""
        config = self.config_of()
        return plan.total_steps(config, training_images(config).num_rows)

    def step(self) -> dict[str, Any]:
        budgets: list[int] = self.settings["budgets"]
        budget = budgets[self.rung]
        self.rung += 1
        numbers = self._measured(budget, budgets[-1])
        return {**numbers, "budget": budget, "done": self.rung == len(budgets)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """One's place, and a copy of the run's checkpoint, since the run goes on and old checkpoints go."""
        place = {"number": self.number, "name": self.name, "rung": self.rung}
        (Path(checkpoint_dir) / "place.json").write_text(json.dumps(place))
        last = checkpoint.resolve(self.folder / self.name)
        shutil.copytree(last, Path(checkpoint_dir) / last.name)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from one's own place, or from another trial's, as population-based training has it."""
        place = json.loads((Path(checkpoint_dir) / "place.json").read_text())
        self.rung = int(place["rung"])
        if place["number"] == self.number:
            self.name = place["name"]
            return
        generation = 1 + sum(1 for _ in self.folder.glob(f"{name_of(self.number)}-from-*"))
        self.name = f"{name_of(self.number)}-from-{place['name'].split('-')[0]}-{generation}"
        _adopt(Path(checkpoint_dir), self.folder / self.name, self.config_of())

    def config_of(self) -> Config:
        """The trial's whole configuration."""
        ours = {"train.storage": str(self.folder), "train.name": self.name}
        return configs.load(self.folder / BASE).replace({**self.point, **ours})

    def _measured(self, budget: int, whole: int) -> dict[str, float]:
        config = self.config_of()
        run_dir = RunFolder.of(config).path
        file = report_file(run_dir, budget)
        if file.exists():
            return dict(json.loads(file.read_text()))
        try:
            numbers = self._measure(config, budget, whole)
        except Exception as error:
            run_dir.mkdir(parents=True, exist_ok=True)
            why = one_line(session.cause(error), 600)
            files.write_text(run_dir / FAILED, json.dumps({"budget": budget, "why": why}))
            raise
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(numbers))
        return numbers

    def _measure(self, config: Config, budget: int, whole: int) -> dict[str, float]:
        part = config.replace({"train.max_steps": max(1, self.steps * budget // whole)})
        trained = _patient(lambda: fit(part, quiet=True))
        numbers = {"step": float(trained.step), **trained.metrics}
        if self.settings["evaluates"]:
            numbers |= self._evaluate(trained)
        return numbers

    def _evaluate(self, trained: Trained) -> Mapping[str, float]:
        results = evaluate(trained.checkpoint, trained.config, quiet=True)

        def send() -> None:
            with open_run(trained.config, trained.folder) as run:
                save_results(run, trained.folder, results, [], step=trained.step)

        _patient(send)
        return results.flat()


def _adopt(donor: Path, run_dir: Path, config: Config) -> None:
    """Begin a run with the checkpoint that another run's folder, or its copy, holds."""
    last = checkpoint.resolve(donor)
    run_dir.mkdir(parents=True)
    config.save(run_dir / checkpoint.CONFIG)
    shutil.copytree(last, run_dir / last.name)


def _patient(job: Callable[[], T]) -> T:
    """Try again while the tracking server is away; training itself goes on from its checkpoint."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return job()
        except TrackingError:
            if time.monotonic() > end:
                raise
            time.sleep(3)
