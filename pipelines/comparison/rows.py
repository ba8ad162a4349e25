"""Finished runs, read from their folders and grouped into the rows of a comparison.

A row is one setting; its runs differ in their seed alone. The table, the figures and the report all start here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines.comparison import intervals
from pipelines.comparison.paper import published
from pipelines.config import Config, ConfigError
from pipelines.recipes import recipes
from pipelines.runs import checkpoint, storage
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import Results, measured_with, metric_name
from pipelines.runs.trust import check_config, is_made_here
from pipelines.tracking import location

_ACRONYMS = ("l1", "ssim", "lpips", "d2sm", "kl", "jsd", "gan")


class RunsError(ValueError):
    """Runs that are not finished, or cannot be compared. One line."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained to its last step and evaluated there.

    Attributes:
        config: that of the training, with the keys of the evaluation that gave the results.
        commit: of the code that wrote the checkpoint; ends in "+" where the working tree had changes; "" without git.
        page: path of the run's page, behind the address of an MLflow server.
        trusted: whether code that its configuration names may be imported, and its server be sent MLflow's password.
        init: what it started from, with the fingerprint of the weights; "": random weights.
    """

    folder: Path
    config: Config
    results: Results
    step: int
    commit: str
    run_id: str
    page: str
    trusted: bool = False
    init: str = ""

    @property
    def name(self) -> str:
        return self.config.train.name

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def checkpoint(self) -> Path:
        return checkpoint.resolve(self.folder)

    @cached_property
    def uri(self) -> str:
        """MLflow's tracking URI. It may hold a password: print `redact(uri)` only."""
        return location.likely(RunFolder.at(self.folder), self.config)

    @property
    def columns(self) -> list[str]:
        """The metrics of a table's row, in order: psnr.sigma25, ssim.sigma25, miou.sigma25, psnr.sigma35, ..."""
        return [metric_name(metric, level) for level in self.results.restored for metric in self.results.metrics]

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """The evaluation under MLflow's names: psnr.sigma25 of the restored, noisy.psnr.sigma25, clean.miou."""
        return self.results.flat()

    @cached_property
    def draws(self) -> Mapping[str, intervals.Values]:
        """The metrics of all photographs and of draws of them, see `intervals.of_results`."""
        return intervals.of_results(self.results)


@dataclass(frozen=True)
class Row:
    """One setting: its runs, in the order of their seeds. `label` as in `label`."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def config(self) -> Config:
        """The configuration of its first run."""
        return self.runs[0].config

    @property
    def published(self) -> Mapping[str, float]:
        """The paper's numbers for this recipe; empty where the paper has no such row."""
        return published(self.config)

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None where no run measured it."""
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over the seeds (n - 1); None for fewer than two."""
        values = self._values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def gain(self, over: Row, metric: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation (n - 1) of the difference to another row, paired by seed.

        Two runs of the same seed saw the same crops and noise, so most of the variation over seeds cancels. None where
        no seed was measured in both rows; the deviation is None for fewer than two such seeds.
        """
        others = {run.seed: run.metrics[metric] for run in over.runs if metric in run.metrics}
        gains = [
            run.metrics[metric] - others[run.seed] for run in self.runs if metric in run.metrics and run.seed in others
        ]
        if not gains:
            return None
        return statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else None

    def interval(self, over: Row, metric: str) -> intervals.Interval | None:
        """The 95 % interval of the gain's mean, over the choice of photographs; see `intervals`.

        None where a run of such a seed was not measured photograph by photograph, see `intervals.of_results`.
        """
        found = self.difference(over, metric)
        return None if found is None else intervals.interval(found)

    def difference(self, over: Row, metric: str) -> intervals.Values | None:
        """The gain's mean, of all photographs and of draws of them; None as in `interval`."""
        ours, theirs = ({run.seed: run.draws for run in row.runs if metric in run.metrics} for row in (self, over))
        return intervals.difference(ours, theirs, metric)

    def _values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


def read_run(folder: str | Path, *, trust: bool = False) -> FinishedRun:
    """A finished run, from its folder or its URI.

    Args:
        trust: the user trusts it, although perhaps it was not trained here by this user.

    Raises:
        RemoteError: the URI cannot be read.
        RunsError: not a run's folder, not trained to its last step, or not evaluated there (at its best step, if
            `train.best` selects it); or its results name keys that cannot be.
        CheckpointError: the checkpoint of the best step is missing.
    """
    run = RunFolder.at(folder if storage.is_uri(folder) else Path(folder).expanduser().absolute()).refresh()
    last = run.latest()
    if last is None:
        raise RunsError(f"{run.path}: no run with a complete checkpoint there; give a folder that `d2sm train` wrote")
    meta = checkpoint.meta(last)
    if not meta.get("final"):
        of = f" of {meta['steps']}" if "steps" in meta else ""
        raise RunsError(f"{run.path}: stopped at step {checkpoint.step(last)}{of}; train it to its last step first")
    selected = checkpoint.selected_by(last)
    info, step = run.read_info(), checkpoint.step(selected)
    if not run.results_file.exists() or info.get("evaluated", step) != step:
        which = "last step" if selected == last else f"best step, {step},"
        raise RunsError(f"{run.path}: its {which} is not evaluated; run `d2sm evaluate {run.path}`")
    results = Results.load(run.results_file)
    return FinishedRun(
        run.path,
        _as_measured(run, configs.load(last / checkpoint.CONFIG), results),
        results,
        step,
        commit=meta.get("commit", "") + ("+" if meta.get("dirty") else ""),
        run_id=info.get("run_id", ""),
        page=info.get("page", ""),
        trusted=trust or is_made_here(run.path),
        init=str(meta.get("init", "")),
    )


def _as_measured(run: RunFolder, trained: Config, results: Results) -> Config:
    """See `FinishedRun.config`. Results of earlier versions do not say how they were measured; config.yaml then does,
    which has been written anew if the run was resumed for another evaluation.
    """
    measured = results.measured_with
    if not measured and run.config_file.exists():
        measured = measured_with(configs.load(run.config_file))
    try:
        return trained.replace(measured)
    except ConfigError as error:
        raise RunsError(
            f"{run.results_file}: measured with {error.reasons[0]}; run `d2sm evaluate {run.path}`, which writes it "
            "again"
        ) from None


def read_rows(folders: Sequence[str | Path], *, trust: bool = False) -> list[Row]:
    """Finished runs grouped into rows, in the order of the first run of each.

    Args:
        trust: see `read_run`.

    Raises:
        RunsError: as `read_run`; two runs of the same setting and seed; runs that were not measured in the same way.
    """
    runs = [read_run(folder, trust=trust) for folder in folders]
    check_measured_alike([(str(run.folder), run.results) for run in runs])
    found: dict[str, list[FinishedRun]] = {}
    for run in runs:
        row = found.setdefault(label(run.config), [])
        if twin := next((other for other in row if other.seed == run.seed), None):
            raise RunsError(f"{run.folder}: the same setting and seed {run.seed} as {twin.folder}; give one of them")
        row.append(run)
    for row in found.values():
        check_same_start([(str(run.folder), run.init) for run in row], "compare them one by one")
    return [Row(name, tuple(sorted(row, key=lambda run: run.seed))) for name, row in found.items()]


def check_trusted(rows: Sequence[Row]) -> None:
    """Make sure that no run of a comparison has code imported, or a server sent a password, on its own word.

    Raises:
        TrustError: one does, and neither was it trained here by this user nor does the user trust it. One line.
    """
    for row in rows:
        for run in row.runs:
            check_config(run.config, run.folder, given=None, trust=run.trusted)


def changed_keys(config: Config) -> dict[str, Any]:
    """The keys in which a setting differs from its recipe, of those that change what is trained."""
    recipe = recipes().get(config.recipe, Config())
    return {key: value for key, (_, value) in recipe.differences(config, "results", "length").items()}


def label(config: Config) -> str:
    """The full name of a setting: its recipe and the keys it changes, such as "ffdnet_l1_cpu train.lr=0.001"."""
    return " ".join([config.recipe or "run", *(f"{key}={value}" for key, value in changed_keys(config).items())])


def common_changes(settings: Sequence[Config]) -> dict[str, Any]:
    """The keys that all settings change, and to the same value."""
    first, *others = map(changed_keys, settings)
    return {key: value for key, value in first.items() if all((key, value) in other.items() for other in others)}


def labels(settings: Sequence[Config]) -> list[str]:
    """Their names in a table: the recipe and the changed keys, without what all settings change alike."""
    common = common_changes(settings)
    return [
        " ".join([config.recipe or "run", *(f"{k}={v}" for k, v in changed_keys(config).items() if k not in common)])
        for config in settings
    ]


def short_names(settings: Sequence[Config]) -> list[str]:
    """The shortest names that tell settings apart, for figures, such as "L1", "D2SM weight=2.5".

    Of the recipe, a backbone and a `_cpu` that all share are left out, and the recipe as a whole where all share it and
    changed keys tell the settings apart. Of the changed keys only those are shown whose values differ, by their last
    part.
    """
    recipe_names = [config.recipe for config in settings]
    if all(name.endswith("_cpu") for name in recipe_names):
        recipe_names = [name.removesuffix("_cpu") for name in recipe_names]
    if len({config.model.name for config in settings}) == 1:
        recipe_names = [name.removeprefix(f"{settings[0].model.name}_") for name in recipe_names]
    words = [
        " ".join(word.upper() if word in _ACRONYMS else word for word in (name or "run").split("_"))
        for name in recipe_names
    ]
    values: list[dict[str, Any]] = [config.flat() for config in settings]
    shown = []
    for config, own in zip(settings, values, strict=True):
        kin = [other for other in settings if other.recipe == config.recipe]
        keys = dict.fromkeys(key for other in kin for key in changed_keys(other))
        differing = [key for key in keys if any(other[key] != values[0][key] for other in values)]
        shown.append([f"{key.rpartition('.')[2]}={short(own[key])}" for key in differing])
    if len(set(words)) == 1 and all(shown):
        words = [""] * len(words)
    return [" ".join([word, *keys]).strip() for word, keys in zip(words, shown, strict=True)]


def short(value: Any) -> str:
    """The value of a key, as names of rows have it."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def check_same_start(started: Sequence[tuple[str, str]], remedy: str) -> None:
    """Runs of one setting start from the same weights.

    Args:
        started: what each run started from (`FinishedRun.init`), with the run's folder or name.

    Raises:
        RunsError: these do not.
    """
    for name, init in started[1:]:
        first, expected = started[0]
        if init != expected:
            raise RunsError(
                f"{name}: started from {init or 'random weights'}, {first} from {expected or 'random weights'}, so "
                f"they are no runs of one setting; {remedy}"
            )


def check_measured_alike(measured: Sequence[tuple[str, Results]]) -> None:
    """Numbers are compared only if they are measured in the same way on the same images.

    Args:
        measured: the results of each run, with the run's folder or name.

    Raises:
        RunsError: one is not measured as the first is. Names what differs, and the keys that decide it.
    """
    for name, results in measured[1:]:
        first, expected = measured[0]
        for what, here, there, keys in _differences(results, expected):
            raise RunsError(
                f"{name}: is not evaluated as {first} is ({what}: {here or 'none'}, there {there or 'none'}); evaluate "
                f"both with the same {keys}"
            )


_DECIDED_BY = {  # what the results of runs that are compared have in common, with the keys that decide it
    "split": "data.val_split",
    "images": "evaluate.limit and data.root",
    "data": "data.root and data.layout",
    "segmenter": "evaluate.segmenter and data.labels",
    "labels": "data.labels",
    "lpips": "evaluate.lpips",
    "convention": "degrade.chain and evaluate.levels",
}


def _differences(one: Results, other: Results) -> Iterator[tuple[str, Any, Any, str]]:
    """In what two evaluations differ: what, its value in either, and the keys that decide it."""
    if one.restored.keys() != other.restored.keys():
        yield "levels", ", ".join(one.restored), ", ".join(other.restored), "degrade.chain, evaluate.levels or .sigmas"
    for name, keys in _DECIDED_BY.items():
        if getattr(one, name) != getattr(other, name):
            yield name, getattr(one, name), getattr(other, name), keys
    for name, what, key in (
        ("weights", "weights of the segmenter", "evaluate.segmenter_weights"),
        ("lpips_weights", "weights of LPIPS", "evaluate.lpips_weights"),
    ):
        a, b = getattr(one, name), getattr(other, name)
        if a and b and a != b:  # results of earlier versions do not name them
            yield what, a, b, key
    if one.judges != other.judges:
        a, b = (", ".join(f"{name} {judge.weights}" for name, judge in of.judges.items()) for of in (one, other))
        yield "further segmenters", a, b, "evaluate.segmenters and evaluate.segmenters_weights"
