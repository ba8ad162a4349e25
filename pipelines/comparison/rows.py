"""Finished runs, read back from their folders and gathered into rows: one row a setting, its seeds side by side.

What compares runs (the table, the figures, the report) starts here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines.comparison.paper import published
from pipelines.config import Config
from pipelines.recipes import recipes
from pipelines.runs import checkpoint, storage
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import Results
from pipelines.tracking import store

DIGITS = {"psnr": 2, "ssim": 3, "miou": 3}
"""The metrics in the order in which tables have them, and the digits shown of each."""


class RunsError(ValueError):
    """Runs that are not finished, or cannot be compared. One line."""


@dataclass(frozen=True)
class Finished:
    """A run that was trained to its end and evaluated."""

    folder: Path
    config: Config
    results: Results
    step: int
    commit: str  # of the code that wrote the checkpoint, "+" behind it when files differed; "" when it had no git
    run_id: str
    page: str  # its path in MLflow's pages, after the address of the server

    @property
    def name(self) -> str:
        return self.config.train.name

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def checkpoint(self) -> Path:
        return checkpoint.resolve(self.folder)

    @property
    def uri(self) -> str:
        """MLflow's tracking URI, with its password: show `text.redact(uri)` only."""
        return store.uri_of(self.config)

    @property
    def columns(self) -> list[str]:
        """The numbers of a table's row, in order: psnr.sigma25, ssim.sigma25, miou.sigma25, psnr.sigma35, ..."""
        return [f"{metric}.sigma{level}" for level in self.results.restored for metric in DIGITS]

    @cached_property
    def numbers(self) -> Mapping[str, float]:
        """Under MLflow's names: psnr.sigma25 of the restored, noisy.psnr.sigma25, clean.miou."""
        return self.results.flat()


@dataclass(frozen=True)
class Row:
    """One setting, with the runs that differ in nothing but their seed."""

    label: str
    runs: tuple[Finished, ...]

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def published(self) -> Mapping[str, float]:
        """The paper's numbers for this recipe; none when it has no such row."""
        return published(self.config)

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None: not measured."""
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the seeds (n - 1); None below two."""
        values = self._values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def gain(self, over: Row, metric: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation (n - 1) of the difference to another row, seed by seed.

        Two runs of one seed saw the same crops and noise, so much of what varies over the seeds falls out. None: no
        seed has both.
        """
        theirs = {run.seed: run.numbers.get(metric) for run in over.runs}
        found = [(run.numbers.get(metric), theirs.get(run.seed)) for run in self.runs]
        gains = [ours - other for ours, other in found if ours is not None and other is not None]
        if not gains:
            return None
        return statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else None

    def _values(self, metric: str) -> list[float]:
        return [run.numbers[metric] for run in self.runs if metric in run.numbers]


def read(folder: str | Path) -> Finished:
    """A finished run, from its folder or its URI.

    Raises:
        RemoteError: the URI cannot be read.
        RunsError: not a run's folder, not trained to its end, or not evaluated.
    """
    run = RunFolder.at(folder if storage.is_uri(folder) else Path(folder).expanduser().absolute()).refresh()
    last = run.latest()
    if last is None:
        raise RunsError(f"{run.path}: no run with a complete checkpoint there; give a folder that `d2sm train` wrote")
    about = checkpoint.meta(last)
    if not about.get("final"):
        raise RunsError(f"{run.path}: stopped at step {about['step']} of {about['steps']}; train it to its end first")
    known, step = run.read_info(), int(about["step"])
    if not run.results_file.exists() or known.get("evaluated", step) != step:
        raise RunsError(f"{run.path}: its last step is not evaluated; `d2sm evaluate {run.path}` does it")
    config = configs.load(last / checkpoint.CONFIG)
    commit = about["commit"] + ("+" if about["dirty"] else "")
    results = Results.load(run.results_file)
    return Finished(run.path, config, results, step, commit, known.get("run_id", ""), known.get("page", ""))


def gather(folders: Sequence[str | Path]) -> list[Row]:
    """The rows of some runs, in the order of the first run of each; seeds in theirs.

    Raises:
        RunsError: as `read`; the same seed twice in a row; runs that were not measured alike.
    """
    runs = [read(folder) for folder in folders]
    found: dict[str, list[Finished]] = {}
    for run in runs:
        _check_alike(runs[0], run)
        row = found.setdefault(label(run.config), [])
        if twin := next((other for other in row if other.seed == run.seed), None):
            raise RunsError(f"{run.folder}: the same setting and seed {run.seed} as {twin.folder}; give one of them")
        row.append(run)
    return [Row(name, tuple(sorted(row, key=lambda run: run.seed))) for name, row in found.items()]


def label(config: Config) -> str:
    """A setting's name: its recipe, and what it changes of that."""
    return " ".join([config.recipe or "run", *(f"{key}={value}" for key, value in changed(config).items())])


def changed(config: Config) -> dict[str, Any]:
    """The keys that change what is trained, with the values in which a setting differs from its recipe."""
    recipe = recipes().get(config.recipe, Config())
    return {key: value for key, (_, value) in recipe.differences(config, "results", "length").items()}


def _check_alike(first: Finished, other: Finished) -> None:
    """Numbers stand in one table only when they were taken in the same way from the same images."""
    for name in ("data", "split", "images", "segmenter", "convention"):
        a, b = getattr(first.results, name), getattr(other.results, name)
        if a != b:
            raise RunsError(
                f"{other.folder}: measured on other terms than {first.folder} ({name}: {b}, there {a}); "
                "evaluate both alike"
            )
    if first.results.restored.keys() != other.results.restored.keys():
        raise RunsError(f"{other.folder}: measured at other noise levels than {first.folder}; evaluate both alike")
