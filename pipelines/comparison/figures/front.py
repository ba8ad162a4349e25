"""The figure of fronts: MIoU by each segmenter, and LPIPS, over PSNR; a line an objective, its weights along it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from pipelines.comparison import fronts, intervals, render
from pipelines.comparison.figures import style
from pipelines.comparison.fronts import Front
from pipelines.comparison.intervals import Values
from pipelines.comparison.rows import Row, RunsError
from pipelines.runs.results import level_key, level_title, metric_digits, metric_name

_L1_STYLE = style.Style("#000000", "D")
_PLACES = ((0, 9), (0, -17), (10, 5), (-10, 5), (10, -13), (-10, -13))  # of a point's label, by front, in points
_HALO = withStroke(linewidth=3, foreground="white")  # keeps a label legible across lines
_NEAR = 0.5  # a reference is drawn as a line if it is at most so far from the points, as a share of their range


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a figure for each level, and write the numbers as front.md and front.json; gives all paths.

    Left to right PSNR, upwards what a segmenter sees of the restored photographs. A point is at L1's mean plus the
    difference from L1 over the seeds of both; its bars are the 95 % interval of that difference over the choice of
    photographs; small dots are the differences of single seeds.

    Raises:
        RunsError: there is no front, or the same PSNR everywhere.
    """
    if not fronts.are_there(rows):
        raise RunsError(
            "no front among these runs: give runs of L1 alone, and runs of the same settings with further terms of the "
            "loss in several weights, of another PSNR than L1's"
        )
    found = fronts.of(rows)
    written = []
    for level in rows[0].runs[0].results.restored:
        if any(front.points(level) for front in found):
            written += _draw_level(rows, found, level, folder / f"front-{level_key(level)}")
    return [*written, *fronts.write(rows, folder)]


def _draw_level(rows: Sequence[Row], found: Sequence[Front], level: str, path: Path) -> list[Path]:
    measured = rows[0].runs[0].results
    titles = dict(zip(measured.metrics, measured.titles, strict=True))
    names = {metric: metric_name(metric, level) for metric in measured.metrics if metric not in ("psnr", "ssim")}
    panels = [metric for metric, name in names.items() if any(name in run.metrics for row in rows for run in row.runs)]
    if not panels:
        panels = ["ssim"]
    drawn = style.figure(max(9.0, 6.2 * len(panels)), 7.2)
    styles = style.of_rows([front.name for front in found])
    for axes, metric in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for at, front in enumerate(found):
            _draw_front(axes, front, metric, level, styles[front.name], _PLACES[at % len(_PLACES)])
        for l1 in {front.l1.label: front.l1 for front in found}.values():
            x, y = (l1.mean(metric_name(name, level)) for name in ("psnr", metric))
            if x is not None and y is not None:
                axes.plot(x, y, color=_L1_STYLE.colour, marker=_L1_STYLE.marker, markersize=9, zorder=5)
        by = measured.segmenter if metric == "miou" else ""
        if metric.startswith("miou-"):
            by = measured.judges[metric.removeprefix("miou-")].segmenter
        _label(axes, metric, f"MIoU by {by}" if by else titles[metric])
        _references(axes, rows, metric, level)
    handles = [Line2D([], [], color=_L1_STYLE.colour, marker=_L1_STYLE.marker, linestyle="", markersize=9)]
    handles += [Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.line, linewidth=2) for s in styles.values()]
    # As many entries side by side as fit: a character is .6 of its size wide, and a line is drawn before each entry.
    fitting = int(drawn.get_figwidth() * 72 / (0.6 * style.SIZE) // (8 + max(map(len, styles))))
    drawn.legend(
        handles,
        ["L1 alone", *styles],
        loc="outside upper center",
        ncols=max(1, min(fitting, 1 + len(styles))),
        fontsize=style.SIZE,
        title=f"What each objective trades PSNR for, {level_title(level)}",
        title_fontsize=style.SIZE + 3,
    )
    style.caption(drawn, _caption(rows, found), size=style.SIZE - 2)
    return style.save(drawn, path)


def _draw_front(axes: Axes, front: Front, metric: str, level: str, look: style.Style, place: tuple[int, int]) -> None:
    across, up = metric_name("psnr", level), metric_name(metric, level)
    x0, y0 = front.l1.mean(across), front.l1.mean(up)
    if x0 is None or y0 is None:
        return
    line = [(x0, y0)]
    for row in front.points(level):
        dx, dy = front.difference(row, across), front.difference(row, up)
        if dx is None or dy is None:
            continue
        x, y = x0 + float(dx[0]), y0 + float(dy[0])
        line.append((x, y))
        axes.errorbar(
            x, y, xerr=_bar(dx), yerr=_bar(dy), color=look.colour, marker=look.marker, markersize=7, capsize=3,
            elinewidth=1.2, zorder=4,
        )  # fmt: skip
        others = {run.seed: run.metrics for run in front.l1.runs}
        pairs = [(run.metrics, others[run.seed]) for run in row.runs if run.seed in others]
        dots = [
            (x0 + ours[across] - theirs[across], y0 + ours[up] - theirs[up])
            for ours, theirs in pairs
            if all(name in numbers for name in (across, up) for numbers in (ours, theirs))
        ]
        if len(dots) > 1:
            dots_x, dots_y = zip(*dots, strict=True)
            axes.scatter(dots_x, dots_y, s=14, color=look.colour, alpha=0.7, linewidths=0, zorder=3)
        axes.annotate(
            front.weight(row), (x, y), xytext=place, textcoords="offset points", fontsize=style.SIZE - 2,
            color=look.colour, ha="center" if not place[0] else "left" if place[0] > 0 else "right", zorder=6,
            path_effects=[_HALO],
        )  # fmt: skip
    axes.plot(*zip(*line, strict=True), color=look.colour, linestyle=look.line, linewidth=1.6, zorder=2)


def _bar(difference: Values) -> list[list[float]] | None:
    """How far the interval reaches below and above the difference, as matplotlib takes it."""
    found = intervals.interval(difference)
    if found is None:
        return None
    return [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]


def _references(axes: Axes, rows: Sequence[Row], metric: str, level: str) -> None:
    """Clean and noisy photographs: as text, and the clean ones as a line where it is near."""
    digits = metric_digits(metric)
    clean = fronts.measured_of(rows, f"clean.{metric}")
    noisy, psnr = (fronts.measured_of(rows, f"noisy.{metric_name(name, level)}") for name in (metric, "psnr"))
    words = [f"clean photographs {clean:.{digits}f}"] if clean is not None else []
    if noisy is not None:
        words.append(f"noisy {noisy:.{digits}f}" + (f" at {psnr:.2f} dB" if psnr is not None else ""))
    if words:
        axes.set_title(", ".join(words), fontsize=style.SIZE - 2, color="0.35")
    low, high = axes.get_ylim()
    if clean is not None and low <= clean <= high + _NEAR * (high - low):
        axes.axhline(clean, color="0.35", linestyle=":", linewidth=1.4)
        axes.annotate("clean", (0.01, clean), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", fontsize=style.SIZE - 2, color="0.35")  # fmt: skip


def _label(axes: Axes, metric: str, title: str) -> None:
    """The axes' names, no longer than an axis; the caption says which way is better."""
    axes.set_xlabel("PSNR, dB", fontsize=style.SIZE)
    axes.set_ylabel(f"{title}, axis inverted" if metric == "lpips" else title, fontsize=style.SIZE)
    if metric == "lpips":
        axes.invert_yaxis()
    axes.margins(0.1, 0.12)
    axes.tick_params(labelsize=style.SIZE - 1)
    axes.ticklabel_format(useOffset=False)
    axes.grid(color="0.88", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _caption(rows: Sequence[Row], found: Sequence[Front]) -> list[str]:
    measured = rows[0].runs[0].results
    seeds = sorted({run.seed for front in found for run in front.l1.runs})
    lines = [
        f"{measured.measured_on}. Numbers at the points: weight of the objective beside "
        "L1. To the right and up is better. A point is L1's mean plus the mean difference from L1 of the same seed "
        f"(L1: seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}); small dots: single seeds where there are "
        "several.",
    ]
    if any(run.draws for front in found for run in front.l1.runs):
        lines.append(
            "Bars: 95 % interval of the difference from L1, a paired bootstrap over the photographs; it covers their "
            "choice, not that of seeds."
        )
    return [*lines, *[note for note in render.interval_notes(rows) if note.startswith("No")]]
