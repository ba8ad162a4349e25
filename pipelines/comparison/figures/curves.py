"""Convergence: what a run's loss was, step by step and second by second, and rows side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipelines.comparison.figures import style
from pipelines.comparison.figures.scene import names
from pipelines.comparison.rows import Finished, Row, RunsError
from pipelines.config import Config
from pipelines.text import redact
from pipelines.tracking import store

LOSSES = {"loss.l1": "L1", "loss.d2sm": "D2SM"}
_RATE = "steps_per_second"
_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))


@dataclass(frozen=True)
class Curve:
    """A metric over a run: three arrays of one length, in the order of the steps.

    Attributes:
        steps: after which each entry was made; an entry is the mean since the one before.
        seconds: of training until then, checkpoints included; the start, and pauses between the parts of a resumed
            run, do not count.
        values: the metric.
    """

    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]


def history(run: Finished, metrics: Sequence[str] = tuple(LOSSES)) -> dict[str, Curve]:
    """The curves of a finished run as MLflow keeps them; a metric that it did not log is left out.

    Raises:
        RunsError: its MLflow store is not there or does not answer, or has no such run or no log of its training.
    """
    uri, remedy = run.uri, "give the store it was logged to with MLFLOW_TRACKING_URI"
    file = store.sqlite_file(uri)
    if not run.run_id or (file is not None and not file.exists()):
        raise RunsError(f"{run.folder}: its MLflow run {run.run_id} is not in {redact(uri)}; {remedy}")
    store.check(uri)
    with store.plain_errors(uri, RunsError):
        client = store.client(uri)
        found = {}
        for name in (_RATE, *metrics):
            # Of a step that was logged twice, the later entry.
            entries = sorted(client.get_metric_history(run.run_id, name), key=lambda entry: entry.timestamp)
            found[name] = {entry.step: entry.value for entry in entries}
    steps = sorted(found[_RATE])
    if not steps:
        raise RunsError(f"{run.folder}: MLflow run {run.run_id} holds no {_RATE}, so no log of its training; {remedy}")
    rates = [found[_RATE][step] for step in steps]
    clock = dict(zip(steps, np.cumsum(np.diff(steps, prepend=0) / rates).tolist()))
    curves = {name: _curve(found[name], clock) for name in metrics}
    return {name: curve for name, curve in curves.items() if len(curve.steps)}


def draw(rows: Sequence[Row], path: Path) -> list[Path]:
    """Training losses against steps and time, a colour a row: thin its seeds, thick their mean; PNG and SVG.

    The first row is what the others are compared with on the right: runs of one seed see the same crops under the same
    noise at the same step, so their difference tells more than two curves that wobble together. Rows that were given
    other crops or noise are left out there. D2SM is drawn where all rows have it.
    """
    short = names(rows)
    curves = {name: [history(run) for run in row.runs] for name, row in zip(short, rows)}
    shown = [loss for loss in LOSSES if all(loss in run for runs in curves.values() for run in runs)]
    pairs = _pairs(rows, curves)
    drawn = style.figure(5 * (3 if pairs else 2), 1.6 + 4 * len(shown))
    grid = drawn.subplots(len(shown), 3 if pairs else 2, squeeze=False)
    looks = style.of_rows(short)
    for line, loss in zip(grid, shown):
        _against(line[0], loss, curves, looks, None)
        _against(line[1], loss, curves, looks, _unit(curves))
        if pairs:
            _differences(line[2], loss, pairs, looks, short[0])
    handles = [Line2D([], [], color=look.colour, linestyle=look.line, linewidth=3) for look in looks.values()]
    labels = [f"{name} ({len(row.runs)} seed{'s' * (len(row.runs) > 1)})" for name, row in zip(short, rows)]
    drawn.legend(handles, labels, loc="outside upper center", ncols=min(4, len(short)), fontsize=style.SIZE)
    drawn.supxlabel(_caption(curves, shown, pairs), fontsize=style.SIZE - 1)
    return style.save(drawn, path)


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, of values and of seconds, at the steps that all of them logged."""
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    at = [np.searchsorted(curve.steps, steps) for curve in curves]
    seconds = np.mean([curve.seconds[i] for curve, i in zip(curves, at)], axis=0)
    return Curve(steps, seconds, np.mean([curve.values[i] for curve, i in zip(curves, at)], axis=0))


def smooth(curve: Curve, width: int) -> Curve:
    """Centred means over `width` entries (odd), over fewer, as many on either side, near the ends."""
    count, half = len(curve.values), width // 2
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    at = np.arange(count)
    reach = np.minimum(half, np.minimum(at, count - 1 - at))
    return Curve(curve.steps, curve.seconds, (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def _curve(values: Mapping[int, float], clock: Mapping[int, float]) -> Curve:
    steps = sorted(values.keys() & clock.keys())
    return Curve(np.array(steps), np.array([clock[s] for s in steps]), np.array([values[s] for s in steps]))


_Runs = Mapping[str, Sequence[Mapping[str, Curve]]]


def _width(curves: Sequence[Curve]) -> int:
    """Entries to smooth over: a twelfth of the shortest curve, odd."""
    return min(len(curve.steps) for curve in curves) // 12 // 2 * 2 + 1


def _all(curves: _Runs, loss: str) -> list[Curve]:
    return [run[loss] for runs in curves.values() for run in runs]


def _unit(curves: _Runs) -> tuple[str, int]:
    longest = max(float(curve.seconds[-1]) for runs in curves.values() for run in runs for curve in run.values())
    return [unit for unit in _UNITS if longest >= 3 * unit[1] or unit[1] == 1][-1]


def _against(
    axes: Axes, loss: str, curves: _Runs, looks: Mapping[str, style.Style], unit: tuple[str, int] | None
) -> None:
    """One panel, against steps or, with a unit, time."""
    width = _width(_all(curves, loss))
    for name, runs in curves.items():
        of_seeds = [run[loss] for run in runs]
        for curve in of_seeds if len(of_seeds) > 1 else []:
            _line(axes, smooth(curve, width), looks[name], unit, linewidth=0.9, alpha=0.45)
        _line(axes, smooth(mean(of_seeds), width), looks[name], unit, linewidth=2.6)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(MaxNLocator(1))
    axes.yaxis.set_minor_formatter("")
    _dress(axes, f"{LOSSES[loss]} loss in training", f"{unit[0]} of training" if unit else "step")


def _line(axes: Axes, curve: Curve, look: style.Style, unit: tuple[str, int] | None, **how: float) -> None:
    along = curve.seconds / unit[1] if unit else curve.steps
    axes.plot(along, curve.values, color=look.colour, linestyle=look.line, **how)  # type: ignore[arg-type]


_Pairs = Mapping[str, Sequence[tuple[Mapping[str, Curve], Mapping[str, Curve]]]]


def _pairs(rows: Sequence[Row], curves: _Runs) -> _Pairs:
    """For each row but the first, its runs beside those of the first that have the same seed and saw the same."""
    first, *others = zip(rows, curves.items())
    found = {}
    for row, (name, own) in others:
        if _seen(row.config) == _seen(first[0].config):
            base = {run.seed: curve for run, curve in zip(first[0].runs, first[1][1])}
            found[name] = [(base[run.seed], curve) for run, curve in zip(row.runs, own) if run.seed in base]
    return {name: both for name, both in found.items() if both}


def _seen(config: Config) -> tuple[object, ...]:
    data = config.data.model_dump(exclude={"root", "bad_images", "val_split"})
    return data, config.noise, config.train.batch_size


def _differences(axes: Axes, loss: str, pairs: _Pairs, looks: Mapping[str, style.Style], first: str) -> None:
    """How far each row is above or below the first at the same step of the same seed, in percent of it."""
    axes.axhline(0, color="0.3", linewidth=1)
    relative = {name: [_relative(base[loss], own[loss]) for base, own in both] for name, both in pairs.items()}
    width = _width([curve for both in relative.values() for curve in both])
    for name, both in relative.items():
        for curve in both if len(both) > 1 else []:
            _line(axes, smooth(curve, width), looks[name], None, linewidth=0.9, alpha=0.45)
        _line(axes, smooth(mean(both), width), looks[name], None, linewidth=2.6)
    _dress(axes, f"{LOSSES[loss]} loss against row {first}, %", "step")


def _relative(base: Curve, own: Curve) -> Curve:
    steps, at, there = np.intersect1d(own.steps, base.steps, return_indices=True)
    return Curve(steps, own.seconds[at], 100 * (own.values[at] / base.values[there] - 1))


def _dress(axes: Axes, title: str, along: str) -> None:
    axes.set_title(title, fontsize=style.SIZE + 1)
    axes.set_xlabel(along, fontsize=style.SIZE)
    axes.tick_params(labelsize=style.SIZE)
    axes.grid(color="0.88", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _caption(curves: _Runs, shown: Sequence[str], pairs: _Pairs) -> str:
    every = _all(curves, shown[0])
    width, gaps = _width(every), {int(gap) for curve in every for gap in np.diff(curve.steps)[:-1]}
    means = f"means of {'/'.join(map(str, sorted(gaps)))} steps" if gaps else "means"
    lines = [
        f"Entries of the log ({means}), centred means of {width} of them; thin: seeds, thick: their mean. "
        "Times compare where the machines were alike and as busy."
    ]
    if pairs:
        lines.append("Right: differences at the same step of the same seed, which saw the same crops and noise.")
    if "loss.d2sm" in shown:
        lines.append("D2SM: each row with its own q, K and divergence.")
    return "\n".join(lines)
