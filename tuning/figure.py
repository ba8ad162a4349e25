"""The figure of a sweep: every trial as a line through its values, coloured by the metric it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tuning.space import Domain, Range, Space
from tuning.trials import TrialSummary, front, short

_FRONT = "C3"  # red


def draw(trials: Sequence[TrialSummary], space: Space, metrics: Sequence[str], path: Path) -> Path:
    """Parallel coordinates of keys and metrics; for several metrics also the first two against each other."""
    shown = [trial for trial in trials if not math.isnan(trial.value(metrics[0])) and trial.state != "failed"]
    figure = Figure(figsize=(2.2 * (len(space) + len(metrics)) + 4 * (len(metrics) > 1), 4.5), layout="constrained")
    if len(metrics) > 1:
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        _draw_front(right, shown, metrics)
    else:
        left = figure.subplots()
    _draw_lines(left, shown, space, metrics)
    figure.savefig(path, dpi=120)
    return path


def _draw_lines(axes: Axes, trials: Sequence[TrialSummary], space: Space, metrics: Sequence[str]) -> None:
    names = [*space, *metrics]
    values = [trial.value(metrics[0]) for trial in trials]
    norm = Normalize(min(values, default=0), max(values, default=1))
    for trial in sorted(trials, key=lambda trial: trial.share):
        heights = [_height_in_domain(trial.point[key], domain) for key, domain in space.items()]
        heights += [_height_among(trial.value(metric), [each.value(metric) for each in trials]) for metric in metrics]
        finished = trial.state == "finished"
        axes.plot(
            range(len(names)),
            heights,
            color=colormaps["viridis"](norm(trial.value(metrics[0]))),
            linewidth=2 if finished else 1,
            linestyle="-" if finished else ":",
        )
    for at, domain in enumerate(space.values()):
        marks = [domain.low, domain.high] if isinstance(domain, Range) else domain
        _draw_axis(axes, at, [(_height_in_domain(value, domain), short(value)) for value in marks])
    for at, metric in enumerate(metrics, start=len(space)):
        numbers = [trial.value(metric) for trial in trials]
        ends = {min(numbers), max(numbers)} if numbers else set()
        _draw_axis(axes, at, [(_height_among(value, numbers), short(value)) for value in ends])
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) - 0.6)
    axes.set_ylim(-0.05, 1.1)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(trials)} trials, coloured by {metrics[0]} (dotted: stopped early)", fontsize=10)


def _draw_front(axes: Axes, trials: Sequence[TrialSummary], metrics: Sequence[str]) -> None:
    best = front(trials, metrics)
    for points, marker, colour in (([each for each in trials if each not in best], ".", "0.6"), (best, "o", _FRONT)):
        places = [(trial.value(metrics[0]), trial.value(metrics[1])) for trial in points]
        places.sort()
        across, up = zip(*places) if places else ((), ())
        axes.plot(across, up, marker, color=colour, linestyle="-" if points is best else "")
        for trial in points:
            place = trial.value(metrics[0]), trial.value(metrics[1])
            axes.annotate(f"{trial.number:03d}", place, (4, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.margins(0.1)
    axes.set_xlabel(metrics[0])
    axes.set_ylabel(metrics[1])
    which = f"Pareto front in red: {len(best)} of {len(trials)} trials, which no other beats in both"
    axes.set_title(which if len(metrics) == 2 else f"{which[:-4]}all metrics", fontsize=9)


def _draw_axis(axes: Axes, at: int, marks: Sequence[tuple[float, str]]) -> None:
    """A vertical axis at place `at`, with texts at heights from 0 to 1."""
    axes.axvline(at, color="0.7", linewidth=0.8, zorder=0)
    for height, text in marks:
        axes.text(at + 0.03, height, text, fontsize=8, va="center", bbox={"facecolor": "white", "alpha": 0.7, "lw": 0})


def _height_in_domain(value: Any, domain: Domain) -> float:
    """From 0 to 1: where a value lies in its range or list."""
    if not isinstance(domain, Range):
        return domain.index(value) / max(1, len(domain) - 1) if value in domain else 0.5
    if domain.log:
        return (math.log(value) - math.log(domain.low)) / (math.log(domain.high) - math.log(domain.low))
    return float((value - domain.low) / (domain.high - domain.low))


def _height_among(value: float, values: Sequence[float]) -> float:
    """From 0 to 1: where a value lies between the least and the greatest."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5
