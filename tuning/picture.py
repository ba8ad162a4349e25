"""The picture of a search: every trial a line through its values, coloured by what it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tuning.rows import Row, front
from tuning.space import Range, Space


def draw(rows: Sequence[Row], space: Space, metrics: Sequence[str], path: Path) -> Path:
    """Parallel coordinates; beside them, for two metrics, the trials between both and their Pareto front."""
    seen = [row for row in rows if not math.isnan(row.value(metrics[0])) and row.state != "failed"]
    figure = Figure(figsize=(2.2 * (len(space) + len(metrics)) + 4 * (len(metrics) > 1), 4.5), layout="constrained")
    if len(metrics) > 1:
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        _scatter(right, seen, metrics)
    else:
        left = figure.subplots()
    _parallel(left, seen, space, metrics)
    figure.savefig(path, dpi=120)
    return path


def _parallel(axes: Axes, rows: Sequence[Row], space: Space, metrics: Sequence[str]) -> None:
    names = [*space, *metrics]
    values = [row.value(metrics[0]) for row in rows]
    norm = Normalize(min(values, default=0), max(values, default=1))
    for row in sorted(rows, key=lambda row: row.share):
        heights = [_height(row.point[k], domain) for k, domain in space.items()]
        heights += [_share(row.value(m), [r.value(m) for r in rows]) for m in metrics]
        whole = row.state == "finished"
        axes.plot(
            range(len(names)),
            heights,
            color=colormaps["viridis"](norm(row.value(metrics[0]))),
            linewidth=2 if whole else 1,
            linestyle="-" if whole else ":",
        )
    for at, domain in enumerate(space.values()):
        _label(axes, at, [(_height(v, domain), _short(v)) for v in _marks(domain)])
    for at, metric in enumerate(metrics, start=len(space)):
        numbers = [row.value(metric) for row in rows]
        ends = {min(numbers), max(numbers)} if numbers else set()
        _label(axes, at, [(_share(v, numbers), _short(float(v))) for v in ends])
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) - 0.6)
    axes.set_ylim(-0.05, 1.1)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(rows)} trials, by {metrics[0]} (dotted: stopped early)", fontsize=10)


def _scatter(axes: Axes, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    best = front(rows, metrics)
    for row in rows:
        on = row in best
        axes.plot(row.value(metrics[0]), row.value(metrics[1]), "o" if on else ".", color="C3" if on else "0.6")
        axes.annotate(f"{row.number:03d}", (row.value(metrics[0]), row.value(metrics[1])), fontsize=7)
    axes.set_xlabel(metrics[0])
    axes.set_ylabel(metrics[1])
    axes.set_title("Pareto front in red", fontsize=10)


def _label(axes: Axes, at: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(at, color="0.7", linewidth=0.8, zorder=0)
    for height, text in marks:
        axes.text(at + 0.03, height, text, fontsize=8, va="center", bbox={"facecolor": "white", "alpha": 0.7, "lw": 0})


def _marks(domain: Any) -> list[Any]:
    return [domain.low, domain.high] if isinstance(domain, Range) else list(domain)


def _height(value: Any, domain: Any) -> float:
    if not isinstance(domain, Range):
        return domain.index(value) / max(1, len(domain) - 1) if value in domain else 0.5
    if domain.log:
        return (math.log(value) - math.log(domain.low)) / (math.log(domain.high) - math.log(domain.low))
    return float((value - domain.low) / (domain.high - domain.low))


def _share(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def _short(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
