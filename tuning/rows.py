"""A sweep as rows, one a trial: what the live table, the final table and the picture show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.runs.results import higher_is_better
from pipelines.runtime import files
from pipelines.text import columns
from tuning.space import Point

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ROWS = "trials.json"


@dataclass(frozen=True)
class Row:
    """One trial. `stopped`: by the scheduler, before its whole budget; `share`: how much of that it had."""

    number: int
    point: Point
    state: State
    share: float
    seconds: float
    metrics: Mapping[str, float]
    why: str = ""

    def value(self, metric: str) -> float:
        """The newest value; NaN where there is none."""
        return float(self.metrics.get(metric, math.nan))


def save(rows: Sequence[Row], folder: Path) -> None:
    """Write trials.json, whole or not at all."""
    files.write_text(folder / ROWS, json.dumps([asdict(row) for row in rows], indent=1))


def load(folder: Path) -> list[Row]:
    """Read trials.json; empty where no trial has begun."""
    path = folder / ROWS
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def mode(metric: str) -> Literal["min", "max"]:
    """Ray Tune's word for the direction in which a metric is optimised."""
    return "max" if higher_is_better(metric) else "min"


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """Best first: those with the whole budget, then the others by how much they had; without a value last."""

    def order(row: Row) -> tuple[float, float, int]:
        value = row.value(metric)
        if math.isnan(value) or row.state == "failed":
            return (1, 0, row.number)
        return (-row.share, -value if mode(metric) == "max" else value, row.number)

    return sorted(rows, key=order)


def best(rows: Sequence[Row], metric: str) -> Row | None:
    """The best of those that had the whole budget; None while there is none."""
    whole = [row for row in rows if row.state == "finished" and not math.isnan(row.value(metric))]
    return ranked(whole, metric)[0] if whole else None


def front(rows: Sequence[Row], metrics: Sequence[str]) -> list[Row]:
    """The Pareto front of the finished trials: those that no other beats or equals on every metric."""
    whole = [row for row in rows if row.state == "finished"]

    def gain(row: Row) -> list[float]:
        return [row.value(m) if mode(m) == "max" else -row.value(m) for m in metrics]

    def beaten(row: Row) -> bool:
        mine = gain(row)
        others = (gain(other) for other in whole if other is not row)
        return any(all(o >= m for o, m in zip(other, mine, strict=True)) and other != mine for other in others)

    return [row for row in whole if not any(map(math.isnan, gain(row))) and not beaten(row)]


def table(rows: Sequence[Row], keys: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    """Header and cells; `*` marks the best, or the Pareto front of several metrics."""
    marked = front(rows, metrics) if len(metrics) > 1 else [best(rows, metrics[0])]
    lines = [["trial", "state", *keys, "budget", *metrics]]
    for row in rows:
        values = [_number(row.value(m)) for m in metrics]
        if row in marked:
            values[0] += " *"
        lines.append(
            [f"{row.number:03d}", row.state, *(_text(row.point[k]) for k in keys), f"{row.share:.0%}", *values]
        )
    return lines


def text(rows: Sequence[Row], keys: Sequence[str], metrics: Sequence[str]) -> str:
    """The ranked table as plain text, the reasons of failed trials below."""
    lines = table(ranked(rows, metrics[0]), keys, metrics)
    failed = [f"{row.number:03d} failed: {row.why}" for row in rows if row.state == "failed"]
    return "\n".join([columns(lines), *failed])


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
