"""The report's numbers as text: the table of all rows, and the IoU of every class."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.comparison.figures import style
from pipelines.comparison.rows import Row, short_names
from pipelines.data.labels import label_set
from pipelines.runs.results import higher_is_better, metric_digits


@dataclass(frozen=True)
class Cell:
    """A number of the table: `mean` is "" where it was not measured, `deviation` "" for fewer than two seeds."""

    mean: str = ""
    deviation: str = ""
    seeds: int = 0  # that measured it
    best: bool = False  # of its column


@dataclass(frozen=True)
class Gain:
    """A difference to the first row, signed: "" where a seed of both was not measured; `interval` is "" for none."""

    mean: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the table: a cell for each level and metric; for these the gains over the first row, or (), and the
    paper's numbers, or ()."""

    name: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    gains: tuple[Gain, ...] = ()
    paper: tuple[str, ...] = ()
    colour: str = ""  # as in the figures


@dataclass(frozen=True)
class Table:
    """`lines` are the rows of the comparison; noisy is what they start from, clean the most that MIoU can reach."""

    levels: tuple[str, ...]
    noisy: Line
    lines: tuple[Line, ...]
    clean: Line


@dataclass(frozen=True)
class Bar:
    """The IoU of a class in one version of the photographs; the bar is `percent` wide, 0 to 100."""

    name: str
    kind: str  # "noisy", "row" or "clean"
    percent: float
    mean: str
    deviation: str
    colour: str = ""  # of a row, as in the figures


def table(rows: Sequence[Row]) -> Table:
    """Means over the seeds. With several rows, the best of each column is marked: all that are equal as printed."""
    first = rows[0].runs[0]
    metrics = first.columns
    lines = []
    for row, (name, look) in zip(rows, style.of_rows(short_names([row.config for row in rows])).items(), strict=True):
        cells = [
            Cell(
                number(row.mean(metric), metric),
                number(row.deviation(metric), metric),
                seeds=sum(metric in run.metrics for run in row.runs),
            )
            for metric in metrics
        ]
        paper = tuple(number(row.published.get(metric), metric) for metric in metrics) if row.published else ()
        gains = () if row is rows[0] else tuple(_gain(row, rows[0], metric) for metric in metrics)
        lines.append(Line(name, tuple(run.seed for run in row.runs), tuple(cells), gains, paper, look.colour))
    noisy = [Cell(number(first.metrics.get(f"noisy.{metric}"), metric)) for metric in metrics]
    clean = [Cell(number(first.metrics.get(f"clean.{metric.partition('.')[0]}"), metric)) for metric in metrics]
    return Table(
        levels=tuple(first.results.restored),
        noisy=Line("noisy", (), tuple(noisy)),
        lines=tuple(_with_best_marked(lines, metrics) if len(lines) > 1 else lines),
        clean=Line("clean", (), tuple(clean)),
    )


def _with_best_marked(lines: Sequence[Line], metrics: Sequence[str]) -> list[Line]:
    best = []
    for metric, *column in zip(metrics, *(line.cells for line in lines), strict=True):
        measured = [cell.mean for cell in column if cell.mean]
        choose = max if higher_is_better(metric) else min
        best.append(choose(measured, key=float) if measured else None)
    return [
        replace(
            line, cells=tuple(replace(cell, best=cell.mean == top) for cell, top in zip(line.cells, best, strict=True))
        )
        for line in lines
    ]


def _gain(row: Row, over: Row, metric: str) -> Gain:
    """The interval with a digit more than the gain, so that its sign shows."""
    if (gain := row.gain(over, metric)) is None:
        return Gain()
    digits, interval = metric_digits(metric), row.interval(over, metric)
    shown = f"[{interval.low:+.{digits + 1}f}, {interval.high:+.{digits + 1}f}]" if interval else ""
    return Gain(f"{gain[0]:+.{digits}f}", shown)


def number(value: float | None, metric: str) -> str:
    """A number with the digits of its metric; "" for None."""
    return "" if value is None else f"{value:.{metric_digits(metric)}f}"


def bars(rows: Sequence[Row], level: str) -> dict[str, list[Bar]]:
    """IoU at a level, by class: noisy, each row, clean; the classes that were measured, in their usual order."""
    first = rows[0].runs[0].results
    versions: list[tuple[str, str, str, list[Mapping[str, float]]]] = [("noisy", "noisy", "", [first.noisy[level].iou])]
    for row, (name, look) in zip(rows, style.of_rows(short_names([row.config for row in rows])).items(), strict=True):
        versions.append((name, "row", look.colour, [run.results.restored[level].iou for run in row.runs]))
    versions.append(("clean", "clean", "", [first.clean.iou]))
    found: dict[str, list[Bar]] = {}
    for class_name in label_set(rows[0].config.data.labels).classes:
        for name, kind, colour, ious in versions:
            if values := [iou[class_name] for iou in ious if class_name in iou]:
                mean = statistics.fmean(values)
                deviation = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
                bar = Bar(name, kind, round(100 * mean, 2), f"{mean:.3f}", deviation, colour)
                found.setdefault(class_name, []).append(bar)
    return found
