"""A study: which objective helps, for which degradation, network and data.

A plan in a YAML file names the settings and the objectives. Every objective is trained in every setting with several
seeds; within a setting all runs start from one common network, if the plan asks for that. Runs that are finished are
not repeated, so the same command goes on where a study was stopped.

    recipe: sr4_d2sm_cpu              # the keys below change it; without it they change the defaults
    seeds: 3
    keys: {data.root: /data/camvid}   # of every run
    start: {train.epochs: 8}          # of the run with the first objective that a setting's runs start from
    settings:                         # every combination is a setting
      degradation:
        sr4: {degrade.chain: "downsample:4"}
        jpeg: {degrade.chain: "jpeg:10"}
      network:
        small: {model.width: 32, model.depth: 8}
    objectives:                       # the first is the one that the others are compared with
      L1: {loss.weight: 0}
      D2SM: {loss.weight: [3, 30]}    # several weights: a front
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines import parsing
from pipelines.comparison import fronts, study_results
from pipelines.comparison.figures import front
from pipelines.comparison.study_results import START, Compared, StudyResults
from pipelines.config import Config, ConfigError
from pipelines.data import splits
from pipelines.experiment import resolved
from pipelines.parallel import check_all, finished, is_done, record, run_all
from pipelines.recipes import recipe
from pipelines.runs.folder import RunFolder
from pipelines.runs.names import check_name
from pipelines.runtime import resources
from pipelines.runtime.progress import Line, stage
from pipelines.sections import Loss
from pipelines.text import one_line, show


class Plan(BaseModel):
    """What the YAML file of a study holds; see the module's docstring. Keys are dotted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = ""
    seeds: int = Field(3, ge=1)
    keys: dict[str, Any] = Field(default_factory=dict)
    start: dict[str, Any] | None = None
    settings: dict[str, dict[str, dict[str, Any]]] = Field(min_length=1)
    objectives: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class StudyRun:
    """A run of a study: its setting, its objective with its weight ("D2SM 30"), and its configuration."""

    setting: str
    objective: str
    config: Config

    @property
    def title(self) -> str:
        """As people read it: "sr4 small: D2SM 30 seed 0"."""
        return f"{self.setting}: {self.objective} seed {self.config.train.seed}"


@dataclass(frozen=True)
class Study:
    """All runs of a study.

    Attributes:
        starts: by setting, the run that the others start from; none where the plan has no `start`.
        runs: the first seed of all settings before the second, so that a stopped study compares all settings.
    """

    name: str
    starts: Mapping[str, StudyRun]
    runs: Sequence[StudyRun]

    @property
    def folder(self) -> Path:
        return RunFolder.of(self.runs[0].config).path.parent

    @cached_property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(run.setting for run in self.runs))


@dataclass(frozen=True)
class Outcome:
    """What a study leaves behind: its results so far, why runs failed (by run name), and its files."""

    results: StudyResults
    failed: Mapping[str, str]
    files: Sequence[Path]
    page: str
    uri: str


def read(file: Path, *, name: str, changes: Mapping[str, Any], absolute: bool = True) -> Study:
    """The runs of the plan in a file.

    Args:
        name: of the study's folder in `train.storage`.
        changes: dotted keys that all runs change.
        absolute: whether paths become absolute, as the processes that train need them; False: as they are given.

    Raises:
        ConfigError: the file is missing or no plan; no such recipe; a wrong key or value. One line.
    """
    check_name(name, "name")
    remedy = "pipelines/README.md shows a plan"
    tree = parsing.read_yaml(file, error=ConfigError, remedy=remedy)
    plan = parsing.shaped(tree, Plan, source=file, error=ConfigError, remedy=remedy)
    base = recipe(plan.recipe) if plan.recipe else Config()
    common = {**plan.keys, **changes}
    if not {**base.flat(), **common}["data.root"] and not all(
        "data.root" in keys for keys in next(iter(plan.settings.values())).values()
    ):
        raise ConfigError("data.root: give the folder with the photographs, such as data.root=/data/cityscapes")
    starts: dict[str, StudyRun] = {}
    by_seed: list[list[StudyRun]] = [[] for _ in range(plan.seeds)]
    for setting, keys in _settings(plan, file):
        where = f"{file}: {setting}"
        of_setting = _changed(base, {**common, **keys}, where)
        variants = list(_variants(plan.objectives, file))
        if plan.start is not None:
            config = _changed(of_setting, {**variants[0][1], **plan.start}, f"{where}: {START}")
            starts[setting] = StudyRun(setting, START, _placed(config, name, f"{setting} {START}", absolute))
        for objective, own in variants:
            config = _changed(of_setting, own, f"{where}: {objective}")
            for number in range(plan.seeds):
                seed = config.train.seed + number
                one = config.replace({"train.seed": seed})
                if setting in starts:
                    one = one.replace({"train.init": str(RunFolder.of(starts[setting].config).path)})
                placed = _placed(one, name, f"{setting} {objective} seed{seed}", absolute)
                by_seed[number].append(StudyRun(setting, objective, placed))
    return Study(name, starts, list(itertools.chain.from_iterable(by_seed)))


def run(study: Study, *, concurrent: int | None = None, quiet: bool = False, verbose: bool = False) -> Outcome:
    """Train and evaluate what is missing, and write the tables and the results after each run.

    Args:
        concurrent: at most so many runs at once; None: as many as fit.
        quiet: no progress line.
        verbose: let Ray's own log through.

    Raises:
        ConfigError, InUseError, DataError, SegmenterError, ResourceError, TrackingError: one line each, at the start. A
        run that fails later is in the outcome instead.
    """
    study, folder = settled(study), RunFolder.at(study.folder)
    with folder.owned("wait until it has ended, or choose another --name"):
        steps = check(study)
        with record(study.runs[0].config, folder, tag="d2sm.study") as parent:
            failed: dict[str, str] = {}
            for runs in (study.starts.values(), study.runs):
                lost = {setting for setting, one in study.starts.items() if one.config.train.name in failed}
                missing = {
                    one.title: one.config.replace({"tracking.parent": parent.id})
                    for one in runs
                    if one.setting not in lost and not is_done(one.config)
                }
                if not missing:
                    continue
                most = resources.runs_that_fit(list(missing.values()), concurrent, verbose=verbose)
                show(budget(study, steps, at_once=most))
                what = f"study {study.name}: {len(missing)} runs, {most} at a time"
                with Line(what, sum(steps[title] for title in missing), quiet=quiet) as line:
                    failed |= run_all(missing, most, line, lambda: write(study))
            results, files = write(study)
            for setting in results.settings:
                rows = results.rows(setting)
                if study_results.has_fronts(rows) and fronts.are_there(rows):
                    files += front.draw(rows, folder.path / "fronts" / setting.replace(" ", "-"))
            for path in files:
                parent.file(path)
            return Outcome(results, failed, files, parent.page, parent.uri)


def settled(study: Study) -> Study:
    """The study with what each configuration leaves to the data (`splits.settled`), which is said.

    Raises:
        DataError, ConfigError: the data cannot be found, or are not as configured.
    """
    said: list[str] = []

    def of(one: StudyRun) -> StudyRun:
        config, lines = splits.settled(one.config)
        said.extend(lines)
        return replace(one, config=config)

    found = replace(
        study,
        starts={setting: of(one) for setting, one in study.starts.items()},
        runs=[of(one) for one in study.runs],
    )
    for text in dict.fromkeys(said):
        show(text)
    return found


def check(study: Study) -> dict[str, int]:
    """Check before the first run starts whatever the missing runs will need; gives the steps of each, by its title.

    Raises:
        NotReady, ConfigError, DataError, ...: as `parallel.check_all`.
    """
    stage("checking what the runs need")
    runs = [*study.starts.values(), *study.runs]
    # The runs of a setting start from one that is not there yet; seeds do not differ in what they need.
    asked = {(one.setting, one.objective): one for one in reversed(runs) if not is_done(one.config)}
    steps = check_all(
        {": ".join(key): one.config.replace({"train.init": "", "train.name": ""}) for key, one in asked.items()}
    )
    return {
        one.title: steps[f"{one.setting}: {one.objective}"] for one in runs if (one.setting, one.objective) in asked
    }


def budget(study: Study, steps: Mapping[str, int], *, at_once: int | None = None) -> str:
    """What a study will cost, on one line; the time is that of its finished runs.

    Args:
        steps: of the runs that are missing, by title (`check`).
        at_once: how many run side by side; None: not known yet, so no time is said.
    """
    runs = [*study.starts.values(), *study.runs]
    missing = [one for one in runs if one.title in steps and not is_done(one.config)]
    done = [one for one in runs if one.title not in {other.title for other in missing}]
    crops = sum(steps[one.title] * one.config.train.batch_size for one in missing)
    seconds = [_seconds_left(one, done) for one in missing]
    parts = [
        f"study {study.name}: {len(study.settings)} settings, {len(runs)} runs, {len(done)} done",
        f"{sum(steps[one.title] for one in missing):,} steps of {crops:,} crops left",
    ]
    if missing and at_once:
        if any(math.isnan(each) for each in seconds):
            parts.append("how long it takes is said once a run of each network has finished")
        else:
            hours = sum(seconds) / at_once / 3600
            parts.append(f"about {hours:.1f} hours, {at_once} at a time, at the pace of the finished runs")
    return "; ".join(parts)


def write(study: Study) -> tuple[StudyResults, list[Path]]:
    """The results of the finished runs, and the files they were written to."""
    results = collect(study)
    return results, study_results.write(results, study.folder)


def collect(study: Study) -> StudyResults:
    """The results of the finished runs."""
    found = [
        Compared(one.setting, one.objective, run, _seconds(one))
        for one in (*study.starts.values(), *study.runs)
        if (run := finished(one.config))
    ]
    return StudyResults(study.name, tuple(found))


def _seconds_left(one: StudyRun, done: Sequence[StudyRun]) -> float:
    """Of a missing run: the mean of the finished runs of its objective and network, else of its network; nan: none."""
    alike = [other for other in done if other.config.model == one.config.model and other.objective != START]
    same = [other for other in alike if other.objective == one.objective] or alike
    return fmean(map(_seconds, same)) if same else math.nan


def _seconds(one: StudyRun) -> float:
    return float(RunFolder.of(one.config).read_info().get("seconds", math.nan))


def _settings(plan: Plan, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the values of the axes: its name, and the keys it changes."""
    for chosen in itertools.product(*(values.items() for values in plan.settings.values())):
        keys: dict[str, Any] = {}
        for _, changes in chosen:
            if twice := keys.keys() & changes.keys():
                raise ConfigError(f"{file}: settings: {sorted(twice)[0]} is changed by two axes; change it in one")
            keys |= changes
        yield " ".join(value for value, _ in chosen), keys


def _variants(objectives: Mapping[str, Mapping[str, Any]], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every objective, once for each of its weights: its name, and the keys it changes."""
    for name, keys in objectives.items():
        several = {key: value for key, value in keys.items() if isinstance(value, list) and key in _NUMBERS}
        if len(several) > 1:
            raise ConfigError(
                f"{file}: objectives: {name}: {' and '.join(several)} have several values; give one of them a list"
            )
        for key, values in several.items():
            for value in values:
                yield f"{name} {value:g}", {**keys, key: value}
        if not several:
            yield name, dict(keys)


# The keys of the loss that hold one number: a list of them is one run each.
_NUMBERS = tuple(
    f"loss.{name}" for name, field in Loss.model_fields.items() if field.annotation in (float, int, float | None)
)


def _changed(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    try:
        return config.replace(changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None


def _placed(config: Config, study: str, name: str, absolute: bool) -> Config:
    """The configuration in the study's folder, with absolute paths if asked."""
    run_name = name.replace(" ", "-")
    check_name(run_name, "the name of a run of the study")
    if absolute:
        without = config.replace({"train.init": ""})  # the run that it starts from is not there yet
        config = resolved(without, what="a study").replace({"train.init": config.train.init})
    return config.replace({"train.name": run_name, "train.storage": str(Path(config.train.storage) / study)})
