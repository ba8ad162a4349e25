"""The convergence figure: training losses of every row, over steps and over time, and differences between rows."""

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
from pipelines.comparison.rows import FinishedRun, Row, RunsError, short_names
from pipelines.config import Config
from pipelines.runtime.progress import stage
from pipelines.text import counted, redact
from pipelines.tracking import store

LOSSES = {"loss.l1": "L1", "loss.d2sm": "D2SM"}
_RATE = "steps_per_second"
_SEEN_IN_TRAINING = (
    "data.",
    "noise.",
    "degrade.",
    "train.batch_size",
)  # keys that say which crops and noise a step sees
_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))
_Unit = tuple[str, int]  # of time, and its seconds
_SEED_LINE = {"linewidth": 0.9, "alpha": 0.45}
_MEAN_LINE = {"linewidth": 2.6}


@dataclass(frozen=True)
class Curve:
    """A metric of a run: three arrays of the same length, ordered by step.

    Attributes:
        steps: at which the log has an entry; an entry is the mean over the steps since the one before.
        seconds: of training up to each step, checkpoints included; the start of the run, and pauses between the parts
            of a resumed run, do not count.
        values: of the metric.
    """

    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]


_Curves = Mapping[str, Sequence[Mapping[str, Curve]]]  # row -> for each of its runs: metric -> its curve
# row -> for each of its runs: the curves of the first row's run of the same seed, and its own
_Pairs = Mapping[str, Sequence[tuple[Mapping[str, Curve], Mapping[str, Curve]]]]


def history(run: FinishedRun, metrics: Sequence[str] = tuple(LOSSES)) -> dict[str, Curve]:
    """The curves of a finished run, read from MLflow; a metric that it did not log is left out.

    Raises:
        RunsError: its MLflow store is missing or does not answer, or has no such run or no log of its training.
    """
    uri, remedy = run.uri, "give the store it was logged to in MLFLOW_TRACKING_URI"
    file = store.sqlite_file(uri)
    if not run.run_id or (file is not None and not file.exists()):
        raise RunsError(f"{run.folder}: its MLflow run {run.run_id} is not in {redact(uri)}; {remedy}")
    store.check(uri)
    logged: dict[str, dict[int, float]] = {}
    with store.plain_errors(uri, RunsError):
        client = store.client(uri)
        for name in (_RATE, *metrics):
            # A resumed run may have logged a step twice: the later entry counts.
            entries = sorted(client.get_metric_history(run.run_id, name), key=lambda entry: entry.timestamp)
            logged[name] = {entry.step: entry.value for entry in entries}
    steps = sorted(logged[_RATE])
    if not steps:
        raise RunsError(f"{run.folder}: MLflow run {run.run_id} holds no {_RATE}, so no log of its training; {remedy}")
    rates = [logged[_RATE][step] for step in steps]
    seconds = dict(zip(steps, np.cumsum(np.diff(steps, prepend=0) / rates).tolist(), strict=True))
    curves = {}
    for name in metrics:
        if shared := sorted(logged[name].keys() & seconds.keys()):
            curves[name] = Curve(
                np.array(shared),
                np.array([seconds[step] for step in shared]),
                np.array([logged[name][step] for step in shared]),
            )
    return curves


def draw(rows: Sequence[Row], path: Path) -> list[Path]:
    """Draw the training losses; gives the paths of PNG and SVG.

    Left over steps, in the middle over time: a colour a row, thin lines for its seeds, a thick one for their mean. On
    the right, each row's difference to the first row at the same step of the same seed: two runs of the same seed see
    the same crops and noise, so the difference is far less noisy than the losses. Rows that were trained on other crops
    or noise are left out there. The D2SM loss is drawn only if all rows have it.
    """
    stage("reading the learning curves from MLflow")
    names = short_names([row.config for row in rows])
    curves = {name: [history(run) for run in row.runs] for name, row in zip(names, rows, strict=True)}
    losses = [loss for loss in LOSSES if all(loss in run for runs in curves.values() for run in runs)]
    pairs = _pairs(rows, curves)
    panels = 3 if pairs else 2
    drawn = style.figure(5 * panels, 1.6 + 4 * len(losses))
    styles = style.of_rows(names)
    longest = max(float(curve.seconds[-1]) for runs in curves.values() for run in runs for curve in run.values())
    unit = [unit for unit in _UNITS if longest >= 3 * unit[1] or unit[1] == 1][-1]
    for axes, loss in zip(drawn.subplots(len(losses), panels, squeeze=False), losses, strict=True):
        _draw_losses(axes[0], loss, curves, styles, None)
        _draw_losses(axes[1], loss, curves, styles, unit)
        if pairs:
            _draw_differences(axes[2], loss, pairs, styles, names[0])
    handles = [Line2D([], [], color=look.colour, linestyle=look.line, linewidth=3) for look in styles.values()]
    labels = [f"{name} ({counted(len(row.runs), 'seed')})" for name, row in zip(names, rows, strict=True)]
    drawn.legend(handles, labels, loc="outside upper center", ncols=min(4, len(names)), fontsize=style.SIZE)
    style.caption(drawn, _caption(curves, losses, names[0] if pairs else ""), size=style.SIZE - 1)
    return style.save(drawn, path)


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds of values and seconds, at the steps that all of them logged."""
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    at = [np.searchsorted(curve.steps, steps) for curve in curves]
    seconds = np.mean([curve.seconds[i] for curve, i in zip(curves, at, strict=True)], axis=0)
    return Curve(steps, seconds, np.mean([curve.values[i] for curve, i in zip(curves, at, strict=True)], axis=0))


def smooth(curve: Curve, width: int) -> Curve:
    """A centred moving average over `width` entries (odd); near the ends over fewer, as many on either side."""
    count, half = len(curve.values), width // 2
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    at = np.arange(count)
    reach = np.minimum(half, np.minimum(at, count - 1 - at))
    return Curve(curve.steps, curve.seconds, (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def _width(curves: Sequence[Curve]) -> int:
    """Entries to smooth over: a twelfth of the shortest curve, odd."""
    return min(len(curve.steps) for curve in curves) // 12 // 2 * 2 + 1


def _draw_losses(axes: Axes, loss: str, curves: _Curves, styles: Mapping[str, style.Style], unit: _Unit | None) -> None:
    """One panel, over steps or, with a unit, over time."""
    width = _width([run[loss] for runs in curves.values() for run in runs])
    for name, runs in curves.items():
        _draw_seeds(axes, [run[loss] for run in runs], width, styles[name], unit)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(MaxNLocator(1))
    axes.yaxis.set_minor_formatter("")
    _label(axes, f"{LOSSES[loss]} training loss", f"training time, {unit[0]}" if unit else "step")


def _draw_differences(axes: Axes, loss: str, pairs: _Pairs, styles: Mapping[str, style.Style], first: str) -> None:
    """One panel: each row's difference to the first row, in percent of that."""
    axes.axhline(0, color="0.3", linewidth=1)
    relative: dict[str, list[Curve]] = {name: [] for name in pairs}
    for name, runs in pairs.items():
        for base, own in ((run[0][loss], run[1][loss]) for run in runs):
            steps, at, there = np.intersect1d(own.steps, base.steps, return_indices=True)
            difference = 100 * (own.values[at] / base.values[there] - 1)
            relative[name].append(Curve(steps, own.seconds[at], difference))
    width = _width([curve for curves in relative.values() for curve in curves])
    for name, curves in relative.items():
        _draw_seeds(axes, curves, width, styles[name], None)
    _label(axes, f"{LOSSES[loss]} loss relative to {first}, %", "step")


def _draw_seeds(axes: Axes, curves: Sequence[Curve], width: int, look: style.Style, unit: _Unit | None) -> None:
    """A row's seeds as thin lines, where there are several, and their mean as a thick one, smoothed over `width`."""
    drawn = [(curve, _SEED_LINE) for curve in curves] if len(curves) > 1 else []
    for curve, line in [*drawn, (mean(curves), _MEAN_LINE)]:
        curve = smooth(curve, width)
        across = curve.seconds / unit[1] if unit else curve.steps
        axes.plot(across, curve.values, color=look.colour, linestyle=look.line, **line)  # type: ignore[arg-type]


def _pairs(rows: Sequence[Row], curves: _Curves) -> _Pairs:
    """For each row but the first that was trained on the same crops and noise: its runs beside the first row's."""

    def saw_the_same(one: Config, other: Config) -> bool:
        return not [key for key in one.differences(other, "results") if key.startswith(_SEEN_IN_TRAINING)]

    (first, (_, of_first)), *others = zip(rows, curves.items(), strict=True)
    base = {run.seed: curves_of_run for run, curves_of_run in zip(first.runs, of_first, strict=True)}
    found = {}
    for row, (name, own) in others:
        if saw_the_same(first.config, row.config):
            found[name] = [(base[run.seed], of) for run, of in zip(row.runs, own, strict=True) if run.seed in base]
    return {name: pairs for name, pairs in found.items() if pairs}


def _label(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, fontsize=style.SIZE + 1)
    axes.set_xlabel(across, fontsize=style.SIZE)
    axes.tick_params(labelsize=style.SIZE)
    axes.grid(color="0.88", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _caption(curves: _Curves, losses: Sequence[str], compared_with: str) -> list[str]:
    """Lines; `compared_with`: the first row's name, "" without differences."""
    drawn = [run[losses[0]] for runs in curves.values() for run in runs]
    width = _width(drawn)
    gaps = sorted({int(gap) for curve in drawn for gap in np.diff(curve.steps)[:-1]})
    entry = f"the mean of {'/'.join(map(str, gaps))} steps" if gaps else "a mean over steps"
    lines = [
        f"Each log entry is {entry}; moving average over {width} entries. Thin: single seeds, thick: their mean.",
        "Times compare only between equal machines under equal load.",
    ]
    if compared_with:
        lines.append(
            f"Right: difference to {compared_with} at the same step of the same seed, on the same crops and noise."
        )
    if "loss.d2sm" in losses:
        lines.append("D2SM: each setting with its own queue size, patch size and divergence.")
    return lines
