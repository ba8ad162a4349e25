"""The results of a study: every number of every photograph in one small file, and the tables made of them."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipelines import parsing
from pipelines.comparison import fronts, intervals, render
from pipelines.comparison.rows import FinishedRun, Row, RunsError, check_measured_alike, check_same_start
from pipelines.config import Config, keys_with
from pipelines.runs.names import is_checkpoint
from pipelines.runs.results import ImageScore, Results, level_title, metric_digits, metric_name
from pipelines.runtime import files
from pipelines.text import columns, did_you_mean, markdown, printable

START = "start"  # in place of an objective: the run that the others of a setting start from
RAW, TEXT = "study.json.xz", "study.md"
_LARGEST = 2**30  # bytes of the unpacked file


@dataclass(frozen=True)
class Compared:
    """A finished run of a study. seconds: of its training and evaluation; nan if it is not known."""

    setting: str
    objective: str
    run: FinishedRun
    seconds: float

    @property
    def name(self) -> str:
        """For messages: its folder; for a run from a file of results the file, and which one it is there."""
        place = self.run.folder
        return str(place) if place.is_dir() else f"{place}: {self.setting}: {self.objective} seed {self.run.seed}"


@dataclass(frozen=True)
class StudyResults:
    """The finished runs of a study.

    Attributes:
        settings, objectives: all of the plan, in its order; the first objective is the one that the others are compared
            with.
    """

    name: str
    runs: tuple[Compared, ...]
    settings: tuple[str, ...]
    objectives: tuple[str, ...]

    def against(self, objective: str) -> StudyResults:
        """The same results, with another objective that the others are compared with.

        Raises:
            RunsError: there is none of this name.
        """
        if objective not in self.objectives:
            near = did_you_mean(objective, self.objectives) or f"; there are {', '.join(self.objectives)}"
            raise RunsError(f"--against {objective}: no objective of {self.name}{near}")
        return replace(self, objectives=(objective, *(name for name in self.objectives if name != objective)))

    @cached_property
    def begun(self) -> list[str]:
        """The settings of which a run has finished."""
        there = {one.setting for one in self.runs}
        return [setting for setting in self.settings if setting in there]

    def rows(self, setting: str) -> list[Row]:
        """A row for each objective and weight of a setting, the network that they start from not among them."""
        found: dict[str, list[FinishedRun]] = {}
        for one in self.runs:
            if one.setting == setting:
                found.setdefault(one.objective, []).append(one.run)
        return [
            Row(name, tuple(sorted(found[name], key=lambda run: run.seed))) for name in self.objectives if name in found
        ]

    def base(self, setting: str) -> Row | None:
        """The row of the first objective, with which the others are compared; None: none of its runs has finished."""
        return next((row for row in self.rows(setting) if row.label == self.objectives[0]), None)

    def start(self, setting: str) -> FinishedRun | None:
        """The run that those of a setting start from; None: from random weights."""
        return next((one.run for one in self.runs if (one.setting, one.objective) == (setting, START)), None)


def check_comparable(results: StudyResults) -> None:
    """Make sure that the runs of each setting can be compared.

    Raises:
        RunsError: they were not measured in the same way, or did not start from the same weights. One line.
    """
    for setting in results.settings:
        runs = [one for one in results.runs if one.setting == setting]
        check_measured_alike([(one.name, one.run.results) for one in runs])
        tuned = [(one.name, one.run.init) for one in runs if one.objective != START]
        check_same_start(tuned, "remove the one that is outdated")


_NOTHING = ImageScore(None, None, None)


class _Raw(BaseModel):
    """A run in the file."""

    model_config = ConfigDict(extra="forbid")

    setting: str
    objective: str
    config: dict[str, Any]
    results: dict[str, Any]
    step: int
    commit: str
    init: str
    seconds: float | None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    settings: list[str] = Field(default_factory=list)  # not in the first version's files, nor the next
    objectives: list[str] = Field(default_factory=list)
    runs: list[_Raw]


def save(results: StudyResults, path: Path) -> None:
    """Write everything that `load` reads: without paths of this machine, and of single images only the restored.

    Why images were skipped is left out too, since the reasons name their files.
    """
    place = {key: value for key, value in Config().flat().items() if key in keys_with("place")}
    runs = []
    for one in results.runs:
        kept = replace(
            one.run.results,
            rows=tuple(replace(row, noisy={}, clean=_NOTHING) for row in one.run.results.rows),
            skipped=dict.fromkeys(one.run.results.skipped, ""),
            measured_with={},
        )
        raw = _Raw(
            setting=one.setting,
            objective=one.objective,
            config=one.run.config.replace(place | _without_paths(one.run.config)).model_dump(mode="json"),
            results=asdict(kept),
            step=one.run.step,
            commit=one.run.commit,
            init=_start(one.run.init),
            seconds=None if math.isnan(one.seconds) else round(one.seconds, 1),
        )
        runs.append(raw.model_dump())
    tree = {"name": results.name, "settings": results.settings, "objectives": results.objectives, "runs": runs}
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"))
    with files.replacing(path) as temporary:
        temporary.write_bytes(lzma.compress(text.encode()))  # a third of gzip: labels repeat from run to run


def _start(init: str) -> str:
    """What a run started from (`FinishedRun.init`) without the path: the run's name for one of its checkpoints."""
    source, mark, fingerprint = init.rpartition(" (weights ")
    if not mark or source.startswith("models:/"):
        return Path(init).name if not mark else init
    place = Path(source)
    return f"{place.parent.name if is_checkpoint(place.name) else place.name}{mark}{fingerprint}"


def _without_paths(config: Config) -> dict[str, Any]:
    """What replaces the values that are paths on this machine although they change results."""
    return {"tracking.parent": "", "train.init": "", "data.labels": Path(config.data.labels).name}


def load(path: Path) -> StudyResults:
    """The results of a study from the file that `save` wrote.

    Raises:
        RunsError: the file is missing or holds anything else, or runs that cannot be compared. One line.
    """
    remedy = f"give the {RAW} that `d2sm study` wrote"
    try:
        with lzma.open(path, "rb") as packed:
            text = packed.read(_LARGEST)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise RunsError(f"{path}: cannot be read ({error}); {remedy}") from None
    found = parsing.parse_json(text, _File, source=path, error=RunsError, remedy=remedy)
    runs = tuple(_compared(raw, path, remedy) for raw in found.runs)
    settings = found.settings or dict.fromkeys(one.setting for one in runs)
    objectives = found.objectives or dict.fromkeys(one.objective for one in runs if one.objective != START)
    if runs and not objectives:
        raise RunsError(f"{path}: holds no run of an objective; {remedy}")
    results = StudyResults(found.name, runs, tuple(settings), tuple(objectives))
    check_comparable(results)
    return results


def _compared(raw: _Raw, path: Path, remedy: str) -> Compared:
    run = FinishedRun(
        path,
        parsing.shaped(raw.config, Config, source=path, error=RunsError, remedy=remedy),
        parsing.shaped(raw.results, Results, source=path, error=RunsError, remedy=remedy),
        raw.step,
        raw.commit,
        run_id="",
        page="",
        init=raw.init,
    )
    return Compared(raw.setting, raw.objective, run, math.nan if raw.seconds is None else raw.seconds)


def write(results: StudyResults, folder: Path) -> list[Path]:
    """Write the results and the tables into a study's folder; gives the files."""
    save(results, folder / RAW)
    files.write_text(folder / TEXT, document(results))
    return [folder / TEXT, folder / RAW]


def text(results: StudyResults) -> str:
    """For the terminal."""
    if not results.runs:
        return "no run has finished"
    parts = [columns(_overview(results), ruled=True)]
    for setting in results.begun:
        parts.append(f"{setting}\n{columns(_cells(results, setting), ruled=True)}")
        if has_fronts(results.rows(setting)):
            lines = fronts.document(results.rows(setting), heading="##").splitlines()
            parts.append("\n".join(map(printable, lines)))
    return "\n\n".join([*parts, "\n".join(map(printable, notes(results)))])


def document(results: StudyResults) -> str:
    """In Markdown: what each objective changes in each setting, then every setting by itself with its fronts."""
    if not results.runs:
        return "No run has finished.\n"
    lines = [f"# Study {markdown(results.name)}", "", *_table(_overview(results)), ""]
    lines += [f"{markdown(note)}\n" for note in notes(results)]
    for setting in results.begun:
        lines += [f"## {markdown(setting)}", "", *_table(_cells(results, setting)), ""]
        if has_fronts(results.rows(setting)):
            lines += [fronts.document(results.rows(setting), heading="###")]
    return "\n".join(lines).rstrip() + "\n"


def has_fronts(rows: Sequence[Row]) -> bool:
    """Whether an objective was trained at several weights, beside L1 alone."""
    return any(len(front.rows) > 1 for front in fronts.of(rows))


def notes(results: StudyResults) -> list[str]:
    """What a reader of the numbers has to know, a paragraph each: how they were made, and what they cost."""
    runs = [one.run for one in results.runs]
    measured: dict[str, list[str]] = {}  # how, and of which settings
    for setting in results.begun:
        measured.setdefault(_first(results, setting).results.measured_on, []).append(setting)
    said = [f"{how}." if len(measured) == 1 else f"{', '.join(of)}: {how}." for how, of in measured.items()]
    said.append(
        f"{results.objectives[0]} is in numbers, the others as the mean difference from it over the seeds of both, "
        "with its 95 % interval and the standard deviation over the seeds. A star: the interval does not hold 0."
    )
    compared = [results.rows(setting) for setting in results.begun if results.base(setting)]
    said += dict.fromkeys(note for rows in compared for note in render.interval_notes(rows))
    known = [one.seconds for one in results.runs if not math.isnan(one.seconds)]
    where = "GPUs" if runs[0].config.train.use_gpu else "CPUs"
    seeds = sorted({run.seed for run in runs})
    commits = sorted({run.commit for run in runs if run.commit})
    said.append(
        f"{len(runs)} runs (seeds {', '.join(map(str, seeds))}), {sum(known) / 3600:.2f} hours of runs on {where}, "
        f"some of them side by side; commit {', '.join(commits) or 'unknown'}."
    )
    return said


def _first(results: StudyResults, setting: str) -> FinishedRun:
    return next(one.run for one in results.runs if one.setting == setting)


def _overview(results: StudyResults) -> list[list[str]]:
    """A row for each objective, a column for each setting: the differences from the first objective."""
    shown = {setting: _in_overview(_first(results, setting).results) for setting in results.begun}
    heads = dict.fromkeys(" / ".join(titles.values()) for titles in shown.values())
    table = [[f"difference from {results.objectives[0]}: {' or '.join(heads)}", *results.begun]]
    rows = {setting: {row.label: row for row in results.rows(setting)} for setting in results.begun}
    for objective in results.objectives:
        cells = []
        for setting, found in rows.items():
            row, base = found.get(objective), found.get(results.objectives[0])
            cells.append(" / ".join(_short(row, base, name) for name in shown[setting]) if row else "")
        if any(cells):
            table.append([objective, *cells])
    return table


def _in_overview(results: Results) -> dict[str, str]:
    """The metrics of the overview, with their titles: all but SSIM; with several levels those of each."""
    several = len(results.restored) > 1
    return {
        metric_name(metric, level): f"{title} at {level_title(level)}" if several else title
        for level in results.restored
        for metric, title in zip(results.metrics, results.titles, strict=True)
        if metric != "ssim"
    }


def _cells(results: StudyResults, setting: str) -> list[list[str]]:
    """A setting: its noisy images, the network that all start from, every objective, and the clean images."""
    start, base, first = results.start(setting), results.base(setting), _first(results, setting)
    names = first.columns
    titles = [f"{title}, {level_title(level)}" for level in first.results.restored for title in first.results.titles]
    table = [["", "seeds", "steps", *titles]]

    def numbers(values: Mapping[str, float], prefix: str = "") -> list[str]:
        return [_number(values.get(f"{prefix}{name}"), name) for name in names]

    table.append(["noisy", "", "", *numbers(first.metrics, "noisy.")])
    if start:
        table.append(["start", str(start.seed), str(start.step), *numbers(start.metrics)])
    for row in results.rows(setting):
        steps = "/".join(dict.fromkeys(str(run.step) for run in row.runs))
        seeds = ", ".join(str(run.seed) for run in row.runs)
        table.append([row.label, seeds, steps, *(_full(row, base, name) for name in names)])
    clean = [_number(first.metrics.get(f"clean.{name.partition('.')[0]}"), name) for name in names]
    return [*table, ["clean", "", "", *clean]]


def _number(value: float | None, name: str) -> str:
    return "-" if value is None else f"{value:.{_digits(name)}f}"


def _digits(name: str) -> int:
    """One more than usual, since the differences are small."""
    return metric_digits(name.partition(".")[0]) + 1


def _short(row: Row, base: Row | None, name: str) -> str:
    """A number of the first objective; of the others the difference without its interval, "-" where there is none."""
    if row.label == (base.label if base else None):
        return _number(row.mean(name), name)
    gain = row.gain(base, name) if base else None
    if base is None or gain is None:
        return "-"
    return intervals.marked(gain[0], row.interval(base, name), _digits(name))


def _full(row: Row, base: Row | None, name: str) -> str:
    """The same with the interval and the standard deviation over the seeds."""
    gain = row.gain(base, name) if base and base.label != row.label else None
    if base is None or gain is None:
        return _short(row, base, name)
    digits = _digits(name)
    text = intervals.shown(gain[0], row.interval(base, name), digits)
    return text if gain[1] is None else f"{text} ±{gain[1]:.{digits}f}"


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    header, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in cells]
    return [header, "|---" * len(cells[0]) + "|", *body]
