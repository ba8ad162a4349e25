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

from pydantic import BaseModel, ConfigDict

from pipelines import parsing
from pipelines.comparison import fronts, render
from pipelines.comparison.rows import FinishedRun, Row, RunsError
from pipelines.config import Config, keys_with
from pipelines.runs.results import ImageScore, Results, level_title, metric_digits
from pipelines.runtime import files
from pipelines.text import columns, markdown, printable

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


@dataclass(frozen=True)
class StudyResults:
    """The finished runs of a study, those that others start from first."""

    name: str
    runs: tuple[Compared, ...]

    @cached_property
    def settings(self) -> list[str]:
        """In the order of the plan."""
        return list(dict.fromkeys(one.setting for one in self.runs))

    def rows(self, setting: str) -> list[Row]:
        """A row for each objective and weight of a setting, the network that they start from not among them."""
        found: dict[str, list[FinishedRun]] = {}
        for one in self.runs:
            if one.setting == setting and one.objective != START:
                found.setdefault(one.objective, []).append(one.run)
        return [Row(name, tuple(sorted(runs, key=lambda run: run.seed))) for name, runs in found.items()]

    def start(self, setting: str) -> FinishedRun | None:
        """The run that those of a setting start from; None: from random weights."""
        return next((one.run for one in self.runs if (one.setting, one.objective) == (setting, START)), None)


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
    runs: list[_Raw]


def save(results: StudyResults, path: Path) -> None:
    """Write everything that `load` reads: without paths of this machine, and of single images only the restored."""
    place = {key: value for key, value in Config().flat().items() if key in keys_with("place")}
    runs = []
    for one in results.runs:
        rows = tuple(replace(row, noisy={}, clean=_NOTHING) for row in one.run.results.rows)
        raw = _Raw(
            setting=one.setting,
            objective=one.objective,
            config=one.run.config.replace(place | {"tracking.parent": "", "train.init": ""}).model_dump(mode="json"),
            results=asdict(replace(one.run.results, rows=rows)),
            step=one.run.step,
            commit=one.run.commit,
            init=Path(one.run.init.partition(" ")[0]).parent.name if one.run.init else "",
            seconds=None if math.isnan(one.seconds) else round(one.seconds, 1),
        )
        runs.append(raw.model_dump())
    text = json.dumps({"name": results.name, "runs": runs}, allow_nan=False, separators=(",", ":"))
    with files.replacing(path) as temporary:
        temporary.write_bytes(lzma.compress(text.encode()))  # a third of gzip: labels repeat from run to run


def load(path: Path) -> StudyResults:
    """The results of a study from the file that `save` wrote.

    Raises:
        RunsError: the file is missing or holds anything else. One line.
    """
    remedy = f"give the {RAW} that `d2sm study` wrote"
    try:
        with lzma.open(path, "rb") as packed:
            text = packed.read(_LARGEST)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise RunsError(f"{path}: cannot be read ({error}); {remedy}") from None
    found = parsing.parse_json(text, _File, source=path, error=RunsError, remedy=remedy)
    return StudyResults(found.name, tuple(_compared(raw, path, remedy) for raw in found.runs))


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
    if not results.settings:
        return "no run has finished"
    parts = [columns(_overview(results), ruled=True)]
    parts += [f"{setting}\n{columns(_cells(results, setting), ruled=True)}" for setting in results.settings]
    return "\n\n".join([*parts, "\n".join(map(printable, notes(results)))])


def document(results: StudyResults) -> str:
    """In Markdown: what each objective changes in each setting, then every setting by itself with its fronts."""
    if not results.settings:
        return "No run has finished.\n"
    lines = [f"# Study {markdown(results.name)}", "", *_table(_overview(results)), ""]
    lines += [f"{markdown(note)}\n" for note in notes(results)]
    for setting in results.settings:
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
    first = runs[0]
    measured = first.results
    judges = [measured.segmenter, *(judge.segmenter for judge in measured.judges.values())]
    seeds = sorted({run.seed for run in runs})
    said = [
        f"{measured.images} photographs of split {measured.split}; segmenters: "
        f"{', '.join(filter(None, judges)) or 'none'}. The first objective of a setting is in numbers, the others as "
        "the mean difference from it over the seeds of both, with its 95 % interval and the standard deviation over "
        "the seeds. MIoU is in percent, differences of it in points. A star: the interval does not hold 0."
    ]
    said += [note for setting in results.settings[:1] for note in render.interval_notes(results.rows(setting))]
    known = [one.seconds for one in results.runs if not math.isnan(one.seconds)]
    where = "GPUs" if first.config.train.use_gpu else "CPUs"
    commits = sorted({run.commit for run in runs if run.commit})
    said.append(
        f"{len(runs)} runs (seeds {', '.join(map(str, seeds))}), {sum(known) / 3600:.2f} hours of runs on {where}, "
        f"some of them side by side; commit {', '.join(commits) or 'unknown'}."
    )
    return said


def _overview(results: StudyResults) -> list[list[str]]:
    """A row for each objective, a column for each setting: the differences from the first objective."""
    rows = {setting: {row.label: row for row in results.rows(setting)} for setting in results.settings}
    objectives = list(dict.fromkeys(label for found in rows.values() for label in found))
    table = [["difference from the first objective", *results.settings]]
    for objective in objectives:
        cells = []
        for found in rows.values():
            base = next(iter(found.values()), None)
            row = found.get(objective)
            metrics = [] if base is None else [name for name in base.runs[0].columns if not name.startswith("ssim")]
            shown = "" if row is None or base is None else " / ".join(_short(row, base, name) for name in metrics)
            cells.append(shown)
        table.append([objective, *cells])
    return table


def _cells(results: StudyResults, setting: str) -> list[list[str]]:
    """A setting: its degraded images, the network that all start from, every objective, and the clean images."""
    rows, start = results.rows(setting), results.start(setting)
    first = next(one.run for one in results.runs if one.setting == setting)
    names = first.columns
    titles = [f"{title}, {level_title(level)}" for level in first.results.restored for title in first.results.titles]
    table = [["", "seeds", "steps", *titles]]

    def numbers(values: Mapping[str, float], prefix: str = "") -> list[str]:
        return [_number(values.get(f"{prefix}{name}"), name) for name in names]

    table.append(["degraded", "", "", *numbers(first.metrics, "noisy.")])
    if start:
        table.append(["start", str(start.seed), str(start.step), *numbers(start.metrics)])
    for row in rows:
        base = rows[0]
        shown = [_number(row.mean(name), name) if row is base else _full(row, base, name) for name in names]
        steps = "/".join(dict.fromkeys(str(run.step) for run in row.runs))
        table.append([row.label, ", ".join(str(run.seed) for run in row.runs), steps, *shown])
    clean = [_number(first.metrics.get(f"clean.{name.partition('.')[0]}"), name) for name in names]
    return [*table, ["clean", "", "", *clean]]


def _scale(name: str) -> tuple[float, int]:
    """Factor and digits with which a metric is shown: MIoU in percent, so that a difference is in points."""
    metric = name.partition(".")[0]
    return (100.0, 2) if metric.partition("-")[0] == "miou" else (1.0, metric_digits(metric) + 1)


def _number(value: float | None, name: str) -> str:
    factor, digits = _scale(name)
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _short(row: Row, base: Row, name: str) -> str:
    """A difference without its interval; a star: the interval does not hold 0."""
    if row is base:
        return _number(row.mean(name), name)
    gain, interval = row.gain(base, name), row.interval(base, name)
    factor, digits = _scale(name)
    star = "*" if interval and interval.excludes_zero else ""
    return "-" if gain is None else f"{gain[0] * factor:+.{digits}f}{star}"


def _full(row: Row, base: Row, name: str) -> str:
    """A difference, its interval, and the standard deviation over the seeds."""
    gain, interval = row.gain(base, name), row.interval(base, name)
    factor, digits = _scale(name)
    if gain is None:
        return "-"
    parts = [_short(row, base, name)]
    if interval:
        parts.append(f"[{interval.low * factor:+.{digits}f}, {interval.high * factor:+.{digits}f}]")
    if gain[1] is not None:
        parts.append(f"±{gain[1] * factor:.{digits}f}")
    return " ".join(parts)


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    header, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in cells]
    return [header, "|---" * len(cells[0]) + "|", *body]
