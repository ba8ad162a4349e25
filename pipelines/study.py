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
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines import parsing
from pipelines.check import check_used
from pipelines.comparison import fronts, study_results
from pipelines.comparison.figures import front
from pipelines.comparison.study_results import START, Compared, StudyResults
from pipelines.config import Config, ConfigError
from pipelines.data import splits
from pipelines.experiment import resolved
from pipelines.parallel import (
    check_all,
    check_compared,
    finished,
    is_done,
    record,
    refuse_names,
    run_all,
    send_waiting,
)
from pipelines.recipes import recipe
from pipelines.runs.folder import RunFolder
from pipelines.runs.names import check_name
from pipelines.runtime import resources
from pipelines.runtime.progress import Line, stage
from pipelines.sections import Loss
from pipelines.text import counted, one_line, show
from pipelines.training import tracked

_Axis = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]  # name of a value -> the keys it changes


class Plan(BaseModel):
    """What the YAML file of a study holds; see the module's docstring. Keys are dotted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = ""
    seeds: int = Field(3, ge=1)
    keys: dict[str, Any] = Field(default_factory=dict)
    start: dict[str, Any] | None = None
    settings: dict[str, _Axis] = Field(min_length=1)
    objectives: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class StudyRun:
    """A run of a study.

    Attributes:
        objective: with its weight, such as "D2SM 30".
        given: the keys that its plan or the command line sets (see `splits.settled`).
    """

    setting: str
    objective: str
    config: Config
    given: frozenset[str] = frozenset()

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
    """What a study leaves behind: its results so far, and its files.

    Attributes:
        failed: why runs failed, by run name.
        untracked: what MLflow lacks of runs that finished, by run name, and of the study itself, by its name.
    """

    results: StudyResults
    failed: Mapping[str, str]
    files: Sequence[Path]
    page: str
    uri: str
    untracked: Mapping[str, str]


def read(file: Path, *, name: str, changes: Mapping[str, Any], absolute: bool = True) -> Study:
    """The runs of the plan in a file.

    Args:
        name: of the study's folder in `train.storage`.
        changes: dotted keys that all runs change, over `keys`; no setting, objective or `start` has them.
        absolute: whether paths become absolute, as the processes that train need them; False: as they are given.

    Raises:
        ConfigError: the file is missing or no plan; no such recipe; a wrong key or value; two runs of one name. One
            line.
    """
    check_name(name, "name")
    remedy = "pipelines/README.md shows a plan"
    tree = parsing.read_yaml(file, error=ConfigError, remedy=remedy)
    plan = parsing.shaped(tree, Plan, source=file, error=ConfigError, remedy=remedy)
    _check_not_overruled(plan, changes, file)
    common = _changed(recipe(plan.recipe) if plan.recipe else Config(), {**plan.keys, **changes}, str(file))
    variants = list(_variants(plan.objectives, file))
    starts: dict[str, StudyRun] = {}
    by_seed: list[list[StudyRun]] = [[] for _ in range(plan.seeds)]
    for setting, keys in _settings(plan, file):
        where = f"{file}: {setting}"
        of_setting = _changed(common, keys, where)
        given = frozenset({*plan.keys, *changes, *keys})
        if not of_setting.data.root:
            raise ConfigError(f"{where}: data.root: give the folder with the photographs, such as /data/cityscapes")
        start = None
        if plan.start is not None:
            own = {**variants[0][1], **plan.start}
            config = _placed(_changed(of_setting, own, f"{where}: {START}"), name, f"{setting} {START}", absolute)
            starts[setting] = StudyRun(setting, START, config, given | own.keys())
            start = RunFolder.of(starts[setting].config)
        for objective, own in variants:
            config = _changed(of_setting, own, f"{where}: {objective}")
            for number in range(plan.seeds):
                seed = config.train.seed + number
                one = config.replace({"train.seed": seed})
                placed = _placed(one, name, f"{setting} {objective} seed{seed}", absolute, start)
                by_seed[number].append(StudyRun(setting, objective, placed, given | own.keys()))
    runs = list(itertools.chain.from_iterable(by_seed))
    _check_names([*starts.values(), *runs], file)
    return Study(name, starts, runs)


def run(study: Study, *, concurrent: int | None = None, quiet: bool = False, verbose: bool = False) -> Outcome:
    """Train and evaluate what is missing, and write the tables and the results after each run.

    Args:
        concurrent: at most so many runs at once; None: as many as fit.
        quiet: no progress line.
        verbose: let Ray's own log through.

    Raises:
        ConfigError, InUseError, DataError, SegmenterError, ResourceError, TrackingError, RunsError: one line each, at
            the start; RunsError for runs that cannot be compared. A run that fails later is in the outcome instead.
    """
    study, folder = settled(study), RunFolder.at(study.folder)
    with folder.owned("wait until it has ended, or choose another --name"):
        collect(study)  # raises if what is finished cannot be compared
        steps = check(study)
        with record(study.runs[0].config, folder, tag="d2sm.study") as parent:
            failed: dict[str, str] = {}
            untracked = send_waiting(one.config for one in (*study.starts.values(), *study.runs) if is_done(one.config))
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
                what = f"study {study.name}: {counted(len(missing), 'run')}, {min(most, len(missing))} at a time"
                with Line(what, sum(steps[title] for title in missing), quiet=quiet) as line:
                    ended = run_all(missing, most, line, _AfterARun(study, steps, most, line))
                failed |= ended.failed
                untracked |= ended.untracked
            results, files = write(study)
            for setting in results.settings:
                rows = results.rows(setting)
                if study_results.has_fronts(rows) and fronts.are_there(rows):
                    files += front.draw(rows, folder.path / "fronts" / setting.replace(" ", "-"))
            for path in files:
                parent.file(path)
        if lacks := tracked.untracked(parent, folder):
            untracked[study.name] = lacks
        return Outcome(results, failed, files, parent.page, parent.uri, untracked)


def settled(study: Study) -> Study:
    """The study with what each configuration leaves to the data (`splits.settled`), which is said.

    Raises:
        DataError, ConfigError: the data cannot be found, or are not as configured; no run uses a given key.
    """
    said: list[str] = []

    def of(one: StudyRun) -> StudyRun:
        config, lines = splits.settled(one.config, given=one.given)
        said.extend(lines)
        return replace(one, config=config)

    found = replace(
        study,
        starts={setting: of(one) for setting, one in study.starts.items()},
        runs=[of(one) for one in study.runs],
    )
    check_used((one.config, one.given) for one in [*found.starts.values(), *found.runs])
    for text in dict.fromkeys(said):
        show(text)
    return found


def check(study: Study) -> dict[str, int]:
    """Check before the first run starts whatever the missing runs will need; gives the steps of each, by its title.

    Raises:
        NotReady, ConfigError, DataError, ...: as `parallel.check_all`.
        RunsError: the runs of a setting, its start among them, are not all evaluated in the same way.
    """
    RunFolder.at(study.folder).check_no_run()
    stage("checking what the runs need")
    runs = [*study.starts.values(), *study.runs]
    missing = [one for one in runs if not is_done(one.config)]
    needed = check_all({title: one.config for title, one in distinct(study, missing).items()})
    of_setting = {one.setting: needed[f"{one.setting}: {one.objective}"].fingerprint for one in missing}
    for one in runs:
        if one.setting in of_setting:
            RunFolder.of(one.config).check(one.config, of_setting[one.setting], "another --name")
    for setting in study.settings:
        own = [one for one in runs if one.setting == setting]
        titles = dict.fromkeys(f"{one.setting}: {one.objective}" for one in own)
        done = [(one.config, run) for one in own if (run := finished(one.config))]
        check_compared(done, {title: needed[title] for title in titles if title in needed})
    return {one.title: needed[f"{one.setting}: {one.objective}"].steps for one in missing}


def distinct(study: Study, runs: Sequence[StudyRun]) -> dict[str, StudyRun]:
    """One of these runs for each setting and objective, by both: its other seeds need the same.

    They are without what concerns their folder, and without the run that they start from, which is not there yet.
    """

    def alone(one: StudyRun) -> StudyRun:
        starts = one.setting in study.starts and one.objective != START
        return replace(one, config=one.config.replace({"train.name": "", **({"train.init": ""} if starts else {})}))

    first: dict[str, StudyRun] = {}
    for one in runs:
        first.setdefault(f"{one.setting}: {one.objective}", one)
    return {title: alone(one) for title, one in first.items()}


def budget(study: Study, steps: Mapping[str, int], *, at_once: int | None = None) -> str:
    """What a study will cost, on one line; the time is that of its finished runs.

    Args:
        steps: of the runs that are missing, by title (`check`).
        at_once: how many run side by side; None: not known yet, so no time is said.
    """
    runs = [*study.starts.values(), *study.runs]
    missing, done = _left(study, steps)
    crops = sum(steps[one.title] * one.config.train.batch_size for one in missing)
    parts = [
        f"study {study.name}: {counted(len(study.settings), 'setting')}, {counted(len(runs), 'run')}, {len(done)} done",
        f"{counted(sum(steps[one.title] for one in missing), 'step')} of {counted(crops, 'crop')} left",
    ]
    if missing and at_once:
        hours = _seconds_of(missing, done) / at_once / 3600
        parts.append(
            "how long it takes is said once a run of each network has finished"
            if math.isnan(hours)
            else f"about {hours:.1f} hours, {at_once} at a time, at the pace of the finished runs"
        )
    return "; ".join(parts)


def _left(study: Study, steps: Mapping[str, int]) -> tuple[list[StudyRun], list[StudyRun]]:
    """The runs that are missing, of those in `steps`, and the finished ones."""
    runs = [*study.starts.values(), *study.runs]
    missing = [one for one in runs if one.title in steps and not is_done(one.config)]
    titles = {one.title for one in missing}
    return missing, [one for one in runs if one.title not in titles]


@dataclass
class _AfterARun:
    """Writes the results of a study so far, and says once how long the rest takes, as soon as finished runs show it."""

    study: Study
    steps: Mapping[str, int]
    at_once: int
    line: Line

    def __post_init__(self) -> None:
        self.said = self._is_known()

    def __call__(self) -> None:
        write(self.study)
        if not self.said and self._is_known():
            self.line.say(budget(self.study, self.steps, at_once=self.at_once))
            self.said = True

    def _is_known(self) -> bool:
        return not math.isnan(_seconds_of(*_left(self.study, self.steps)))


def write(study: Study) -> tuple[StudyResults, list[Path]]:
    """The results of the finished runs, and the files they were written to."""
    results = collect(study)
    return results, study_results.write(results, study.folder)


def collect(study: Study) -> StudyResults:
    """The results of the finished runs.

    Raises:
        RunsError: those of a setting were not measured in the same way, or did not start from the same weights.
    """
    found = [
        Compared(one.setting, one.objective, run, _seconds(one))
        for one in (*study.starts.values(), *study.runs)
        if (run := finished(one.config))
    ]
    results = StudyResults(
        study.name,
        tuple(found),
        settings=tuple(study.settings),
        objectives=tuple(dict.fromkeys(one.objective for one in study.runs)),
    )
    study_results.check_comparable(results)
    return results


def _seconds_of(missing: Sequence[StudyRun], done: Sequence[StudyRun]) -> float:
    """That the missing runs will take, one after the other; nan: not known.

    Each as the mean of the finished runs of its objective and network, else of its network.
    """
    total = 0.0
    for one in missing:
        alike = [other for other in done if other.config.model == one.config.model and other.objective != START]
        same = [other for other in alike if other.objective == one.objective] or alike
        total += fmean(map(_seconds, same)) if same else math.nan
    return total


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


def _check_not_overruled(plan: Plan, changes: Mapping[str, Any], file: Path) -> None:
    """Refuse a typed key that the plan sets again for some runs: its value there would win."""
    places = {START: plan.start or {}}
    places |= {f"settings: {axis}: {name}": keys for axis, its in plan.settings.items() for name, keys in its.items()}
    places |= {f"objectives: {name}": keys for name, keys in plan.objectives.items()}
    for where, keys in places.items():
        if twice := sorted(keys.keys() & changes.keys()):
            raise ConfigError(
                f"{twice[0]}={changes[twice[0]]}: {file} sets it too, in {where}, for some of the runs; change it there"
            )


def _check_names(runs: Sequence[StudyRun], file: Path) -> None:
    found: dict[str, StudyRun] = {}
    for one in runs:
        if (other := found.setdefault(one.config.train.name, one)) is not one:
            raise ConfigError(
                f"{file}: {one.title} and {other.title} would both be the run {one.config.train.name}; give settings, "
                "objectives and weights names of their own"
            )


def _variants(objectives: Mapping[str, Mapping[str, Any]], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every objective, once for each of its weights: its name, and the keys it changes."""
    for name, keys in objectives.items():
        several = {key: value for key, value in keys.items() if isinstance(value, list) and key in _NUMBERS}
        if len(several) > 1:
            raise ConfigError(
                f"{file}: objectives: {name}: {' and '.join(several)} have several values; give one of them a list"
            )
        if name == START:
            raise ConfigError(
                f"{file}: objectives: {START}: the run that others start from has this name; choose another"
            )
        for key, values in several.items():
            if not values:
                raise ConfigError(f"{file}: objectives: {name}: {key}=[]: give a number, or several")
            for value in values:
                yield f"{name} {_weight(value, f'{file}: objectives: {name}: {key}'):g}", {**keys, key: value}
        if not several:
            yield name, dict(keys)


def _weight(value: Any, where: str) -> float:
    """A number of a plan; it may stand in quotes."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} in the list is no number") from None


# The keys of the loss that hold one number: a list of them is one run each.
_NUMBERS = tuple(
    f"loss.{name}" for name, field in Loss.model_fields.items() if field.annotation in (float, int, float | None)
)


def _changed(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    try:
        refuse_names(changes, "study")
        return config.replace(changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None


def _placed(config: Config, study: str, name: str, absolute: bool, start: RunFolder | None = None) -> Config:
    """The configuration in the study's folder, with absolute paths if asked, and `start` as what it starts from."""
    run_name = name.replace(" ", "-")
    check_name(run_name, "the name of a run of the study")
    if start:
        config = config.replace({"train.init": ""})
    if absolute:
        config = resolved(config, what="a study")
    if start:  # which is not there yet
        config = config.replace({"train.init": start.place})
    return config.replace({"train.name": run_name, "train.storage": str(Path(config.train.storage) / study)})
