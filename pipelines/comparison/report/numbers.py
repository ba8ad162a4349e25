"""The report's numbers as they are printed: the table, and the IoU of each class."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from d2sm.metrics import CLASSES
from pipelines.comparison.figures import style
from pipelines.comparison.rows import DIGITS, Finished, Row
from pipelines.runs.results import higher_is_better


@dataclass(frozen=True)
class Cell:
    """One number; `mean` is "" where there is none, `spread` below two seeds."""

    mean: str = ""
    spread: str = ""
    seeds: int = 0
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table: what we measured under each (metric, level) in turn, and the paper's numbers or ()."""

    name: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    paper: tuple[str, ...] = ()
    colour: str = ""  # as in the figures


@dataclass(frozen=True)
class Table:
    """`floor` is noisy, `ceiling` clean; the lines between them are the rows that were trained."""

    levels: tuple[str, ...]
    floor: Line
    lines: tuple[Line, ...]
    ceiling: Line


@dataclass(frozen=True)
class Bar:
    """A class's IoU in one kind of image; `share` is its width, 0 to 100."""

    name: str
    kind: str  # "noisy", "row" or "clean"
    share: float
    mean: str
    spread: str
    colour: str = ""  # of the row, as in the figures


def table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """Means over the seeds, the best of each column marked (all that print alike, where there are two rows)."""
    first = rows[0].runs[0]
    keys = first.columns
    lines = [
        Line(
            name,
            tuple(run.seed for run in row.runs),
            tuple(_cell(row, key) for key in keys),
            _paper(row, keys),
            look.colour,
        )
        for row, (name, look) in zip(rows, style.of_rows(names).items())
    ]
    return Table(
        levels=tuple(first.results.restored),
        floor=Line("noisy", (), tuple(Cell(number(first.numbers.get(f"noisy.{key}"), key)) for key in keys)),
        lines=tuple(_marked(lines, keys)),
        ceiling=Line("clean", (), tuple(_clean(first, key) for key in keys)),
    )


def number(value: float | None, key: str) -> str:
    """A number as its column prints it."""
    return "" if value is None else f"{value:.{DIGITS[key.partition('.')[0]]}f}"


def bars(rows: Sequence[Row], names: Sequence[str], level: str) -> dict[str, list[Bar]]:
    """IoU by class at a noise level: noisy, each row, clean; the classes that were measured, in their usual order."""
    first = rows[0].runs[0].results
    found: dict[str, list[Bar]] = {}
    for name in CLASSES:
        kinds = [_bar("noisy", "noisy", [first.noisy[level].iou], name)]
        kinds += [
            _bar(title, "row", [run.results.restored[level].iou for run in row.runs], name, look.colour)
            for row, (title, look) in zip(rows, style.of_rows(names).items())
        ]
        kinds.append(_bar("clean", "clean", [first.clean.iou], name))
        if present := [bar for bar in kinds if bar is not None]:
            found[name] = present
    return found


def _bar(name: str, kind: str, ious: Iterable[Mapping[str, float]], of: str, colour: str = "") -> Bar | None:
    values = [iou[of] for iou in ious if of in iou]
    if not values:
        return None
    mean = statistics.fmean(values)
    spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return Bar(name, kind, round(100 * mean, 2), f"{mean:.3f}", spread, colour)


def _cell(row: Row, key: str) -> Cell:
    measured = sum(key in run.numbers for run in row.runs)
    return Cell(number(row.mean(key), key), number(row.spread(key), key), measured)


def _clean(run: Finished, key: str) -> Cell:
    return Cell(number(run.numbers.get("clean.miou"), key) if key.startswith("miou.") else "")


def _paper(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(number(row.published.get(key), key) for key in keys) if row.published else ()


def _marked(lines: Sequence[Line], keys: Sequence[str]) -> list[Line]:
    if len(lines) < 2:
        return list(lines)
    tops = []
    for key, *column in zip(keys, *(line.cells for line in lines), strict=True):
        measured = [cell.mean for cell in column if cell.mean]
        choose = max if higher_is_better(key) else min
        tops.append(choose(measured, key=float) if measured else "")
    return [
        replace(
            line,
            cells=tuple(replace(cell, best=cell.mean == top != "") for cell, top in zip(line.cells, tops, strict=True)),
        )
        for line in lines
    ]
