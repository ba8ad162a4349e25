"""Fronts: what each objective trades PSNR for as its weight grows, and objectives compared at equal PSNR.

A front holds the rows that differ in the weight of one objective alone, or in `loss.gradient_ratio` alone; L1 alone,
trained with the same other settings, is a point of every front. All differences are from L1, paired by seed and
by photograph (`intervals`). Between two neighbouring weights a front is interpolated linearly, so that two fronts can
be compared where both have lost the same PSNR.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from d2sm.objectives import TERMS
from pipelines.comparison import intervals, render
from pipelines.comparison.intervals import Values
from pipelines.comparison.rows import Row, short
from pipelines.config import Config, keys_with
from pipelines.runs.results import higher_is_better, level_title, metric_digits, metric_name
from pipelines.runtime import files
from pipelines.text import markdown

TEXT, JSON = "front.md", "front.json"
DROPS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)  # dB below L1 at which fronts are compared
_L1 = "l1"
_WEIGHTS = {name: f"loss.{term.weight_key}" for name, term in TERMS.items() if name != _L1}
_RATIO = "loss.gradient_ratio"
_SETTING = tuple(
    key for key in keys_with("results", "length") if key not in (*_WEIGHTS.values(), _RATIO, "train.init")
)  # what all rows of a front share; `Row.init` stands for train.init


@dataclass(frozen=True)
class Front:
    """An objective at several weights.

    Attributes:
        name: of the objective, with the settings in which it differs from other fronts: "D2SM patch_size=32".
        l1: the row of L1 alone.
        rows: in the order of their weights.
    """

    name: str
    l1: Row
    rows: tuple[Row, ...]

    @staticmethod
    def weight(row: Row) -> str:
        """The weight of the objective, or of each of its terms: "10", "10 / 0.0003"; "ratio 2" where it has one."""
        if (ratio := row.config.loss.gradient_ratio) is not None:
            return f"ratio {ratio:g}"
        return " / ".join(f"{weight:g}" for name, weight in row.config.loss.terms.items() if name != _L1)

    def difference(self, row: Row, metric: str) -> Values | None:
        """From L1, mean over the seeds of both: of all photographs and of each draw; (1,), of all photographs, where
        there is no interval; None where no seed of both was measured."""
        found = row.difference(self.l1, metric)
        if found is None and (gain := row.gain(self.l1, metric)):
            found = np.array([gain[0]])
        return found

    def points(self, level: str) -> list[Row]:
        """The rows in the order of their weights; those whose PSNR was not measured at a level are left out."""
        psnr = metric_name("psnr", level)
        return [row for row in self.rows if row.gain(self.l1, psnr)]

    def at(self, level: str, drop: float) -> dict[str, Values] | None:
        """The differences from L1, by metric, where PSNR is `drop` dB below it, see `interpolated`."""
        names = [metric_name(metric, level) for metric in self.l1.runs[0].results.metrics]
        points = []
        for row in self.points(level):
            differences = {name: self.difference(row, name) for name in names}
            points.append({name: values for name, values in differences.items() if values is not None})
        return interpolated(points, metric_name("psnr", level), drop)


def interpolated(points: Sequence[Mapping[str, Values]], psnr: str, drop: float) -> dict[str, Values] | None:
    """The differences from L1, by metric, where a front's PSNR is `drop` dB below it; None beyond the front's end.

    The front begins at L1, whose weight is 0, and follows the weights, not the PSNR: a weak weight may gain PSNR, and
    L1 does not lie between it and the next. Interpolated by PSNR between the two neighbours where the front falls below
    `drop` for the last time. The same share of the way is taken in every draw.

    Args:
        points: the differences from L1, in the order of their weights.
        psnr: the metric that is PSNR.
    """
    l1 = {name: np.zeros(1 + intervals.DRAWS) for point in points for name in point}
    for a, b in reversed([*pairwise([l1, *points])]):
        above, below = -float(a[psnr][0]), -float(b[psnr][0])
        if above <= drop <= below and below > above:
            share = (drop - above) / (below - above)
            return {name: _mix(1 - share, a[name], share, b[name]) for name in a if name in b}
    return None


def of(rows: Sequence[Row]) -> list[Front]:
    """The fronts of a comparison, in the order of their first rows; none without a row of L1 alone beside others.

    Args:
        rows: from `rows.read_rows`.
    """
    l1: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if _objective(row.config) == ():
            l1.setdefault(_settings(row, loss=False), row)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        objective = _objective(row.config)
        if objective and _settings(row, loss=False) in l1:
            groups.setdefault((*objective, *_settings(row, loss=True)), []).append(row)
    found = [sorted(group, key=lambda row: _strength(row.config)) for group in groups.values()]
    names = _names([group[0] for group in found])
    return [
        Front(name, l1[_settings(group[0], loss=False)], tuple(group)) for name, group in zip(names, found, strict=True)
    ]


def are_there(rows: Sequence[Row]) -> bool:
    """Whether there is something to show: a row whose PSNR differs from that of its L1 at some level."""
    levels = rows[0].runs[0].results.restored if rows else ()
    gains = (
        row.gain(front.l1, metric_name("psnr", level)) for front in of(rows) for row in front.rows for level in levels
    )
    return any(gain is not None and gain[0] != 0 for gain in gains)


def compared(a: Front, b: Front, level: str, drop: float) -> dict[str, Values] | None:
    """By metric, how much larger it is on `a` than on `b` where both are `drop` dB below the same L1; None if one of
    them ends before, or they start from different L1."""
    ours, theirs = (front.at(level, drop) for front in (a, b))
    if a.l1 is not b.l1 or ours is None or theirs is None:
        return None
    return {name: _mix(1, ours[name], -1, theirs[name]) for name in ours if name in theirs}


def left_out(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The labels of the rows on no front, by the reason."""
    fronts = of(rows)
    shown = {row.label for front in fronts for row in (front.l1, *front.rows)}
    taken = {_settings(front.l1, loss=False) for front in fronts}
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.label in shown:
            continue
        if _objective(row.config):
            reason = "since no row is L1 alone with their other settings"
        elif _settings(row, loss=False) in taken:
            reason = "since another row is L1 alone with their settings"
        else:
            reason = "since no row has a further objective beside them"
        found.setdefault(reason, []).append(row.label)
    return found


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write front.md and front.json; gives their paths."""
    contents = {TEXT: document(rows), JSON: json.dumps(tree(rows), indent=2, allow_nan=False) + "\n"}
    for name, content in contents.items():
        files.write_text(folder / name, content)
    return [folder / name for name in contents]


def document(rows: Sequence[Row], *, heading: str = "#") -> str:
    """In Markdown, for each level: the points of every front, and the fronts at equal PSNR.

    Args:
        heading: of the text; its sections have a "#" more.
    """
    fronts = of(rows)
    if not fronts:
        return "There is no front: no row has a further objective beside a row of L1 alone with the same settings.\n"
    measured = rows[0].runs[0].results
    lines = [f"{heading} Fronts: what each objective trades PSNR for", ""]
    lines += [f"{markdown(note)}\n" for note in notes(rows)]
    for level in measured.restored:
        names = [metric_name(metric, level) for metric in measured.metrics]
        lines += [f"{heading}# {level_title(level).capitalize()}", ""]
        lines += [_line("", "seeds", *measured.titles), "|---" * (2 + len(names)) + "|"]
        lines += [_line("noisy", "", *(_number(measured_of(rows, f"noisy.{name}"), name) for name in names))]
        for base in dict.fromkeys(front.l1.label for front in fronts):
            row = next(front.l1 for front in fronts if front.l1.label == base)
            seeds = ", ".join(str(run.seed) for run in row.runs)
            lines.append(_line("L1", seeds, *(_number(row.mean(name), name) for name in names)))
        ceiling = (_number(measured_of(rows, f"clean.{metric}"), metric) for metric in measured.metrics)
        lines += [_line("clean", "", *ceiling), "", "Difference from L1:", ""]
        lines += [_line("objective", "weight", "seeds", *measured.titles), "|---" * (3 + len(names)) + "|"]
        for front in fronts:
            for row in front.points(level):
                cells = (_difference(front.difference(row, name), name) for name in names)
                lines.append(_line(markdown(front.name), front.weight(row), _seeds(front, row), *cells))
        lines += ["", *_at_equal_psnr(fronts, level, measured.metrics, measured.titles)]
    return "\n".join(lines).rstrip() + "\n"


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the numbers has to know, a paragraph each."""
    measured = rows[0].runs[0].results
    found = [
        f"{measured.measured_on}. "
        "A front is one objective at several weights beside L1; L1 alone, of the same settings, is its first point. "
        "Differences are from L1, mean over the seeds of both. A star: the interval does not hold 0. At equal PSNR: "
        "interpolated linearly between the two neighbouring weights where the front falls below that PSNR for the last "
        "time."
    ]
    lpips = metric_name("lpips", next(iter(measured.restored)))
    if measured.lpips and not higher_is_better(lpips):
        found.append("Of LPIPS less is better.")
    for reason, out in left_out(rows).items():
        found.append(f"On no front, {reason}: {', '.join(out)}.")
    return [*found, *render.interval_notes(rows)]


def tree(rows: Sequence[Row]) -> dict[str, Any]:
    """For programs: the fronts by level, every number with its interval, or null."""
    fronts = of(rows)
    if not fronts:
        return {"notes": [], "levels": {}}
    measured = rows[0].runs[0].results
    return {"notes": notes(rows), "levels": {level: _level(fronts, level) for level in measured.restored}}


def measured_of(rows: Sequence[Row], name: str) -> float | None:
    """A number of the noisy or clean images, such as "clean.miou"; all rows have the same."""
    return rows[0].runs[0].metrics.get(name)


def _level(fronts: Sequence[Front], level: str) -> dict[str, Any]:
    metrics = fronts[0].l1.runs[0].results.metrics

    def numbers(values: Mapping[str, Values | None] | None) -> dict[str, Any] | None:
        if values is None:
            return None
        return {metric: _json(values.get(metric_name(metric, level))) for metric in metrics}

    names = [metric_name(metric, level) for metric in metrics]
    return {
        "fronts": [
            {
                "objective": front.name,
                "l1": {metric: front.l1.mean(metric_name(metric, level)) for metric in metrics},
                "points": [
                    {
                        "weights": {k: w for k, w in row.config.loss.terms.items() if k != _L1},
                        "gradient_ratio": row.config.loss.gradient_ratio,
                        "seeds": _common(front, row),
                        "row": row.label,
                        "difference": numbers({name: front.difference(row, name) for name in names}),
                    }
                    for row in front.points(level)
                ],
                "at": {f"{drop:g}": numbers(front.at(level, drop)) for drop in DROPS},
            }
            for front in fronts
        ],
        "compared": [
            {"objective": a.name, "over": b.name, "drop": drop, "difference": numbers(found)}
            for drop in DROPS
            for a, b in combinations(fronts, 2)
            if (found := compared(a, b, level, drop)) is not None
        ],
    }


def _at_equal_psnr(fronts: Sequence[Front], level: str, metrics: Sequence[str], titles: Sequence[str]) -> list[str]:
    shown = [
        (metric_name(metric, level), title) for metric, title in zip(metrics, titles, strict=True) if metric != "psnr"
    ]
    head = [_line("dB below L1", "objective", "compared with", *(title for _, title in shown))]
    lines = []
    for drop in DROPS:
        for front in fronts:
            if found := front.at(level, drop):
                cells = (_difference(found.get(name), name) for name, _ in shown)
                lines.append(_line(f"{drop:g}", markdown(front.name), "L1", *cells))
        for a, b in combinations(fronts, 2):
            if difference := compared(a, b, level, drop):
                cells = (_difference(difference.get(name), name) for name, _ in shown)
                lines.append(_line(f"{drop:g}", markdown(a.name), markdown(b.name), *cells))
    if not lines:
        return [f"No front reaches {DROPS[0]:g} dB below L1, so none is compared at equal PSNR.", ""]
    return ["At equal PSNR:", "", *head, "|---" * (3 + len(shown)) + "|", *lines, ""]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float | None, name: str) -> str:
    return "-" if value is None else f"{value:.{metric_digits(name)}f}"


def _difference(values: Values | None, name: str) -> str:
    """A cell: the difference and its interval with a digit more than usual; a star where that does not hold 0."""
    if values is None:
        return "-"
    return intervals.shown(values[0], intervals.interval(values), metric_digits(name) + 1)


def _json(values: Values | None) -> dict[str, Any] | None:
    if values is None or not np.isfinite(values[0]):
        return None
    found = intervals.interval(values)
    return {"mean": float(values[0]), "interval": found and [found.low, found.high]}


def _common(front: Front, row: Row) -> list[int]:
    """The seeds of a row and of its L1."""
    return [run.seed for run in row.runs if run.seed in {other.seed for other in front.l1.runs}]


def _seeds(front: Front, row: Row) -> str:
    return ", ".join(map(str, _common(front, row)))


def _mix(p: float, a: Values, q: float, b: Values) -> Values:
    """p a + q b, without draws where one of them has none."""
    length = min(len(a), len(b))
    found: Values = p * a[:length] + q * b[:length]
    return found


def _objective(config: Config) -> tuple[str, ...]:
    """The terms beside L1."""
    return tuple(name for name in config.loss.terms if name != _L1)


def _strength(config: Config) -> tuple[float, ...]:
    """What the rows of a front differ in: the gradients' ratio, and the weights."""
    return (config.loss.gradient_ratio or 0.0, *config.loss.terms.values())


def _settings(row: Row, *, loss: bool) -> tuple[str, ...]:
    """What the rows of a front have in common; without the section `loss`, what they share with L1 alone."""
    flat = row.config.flat()
    shared = (key for key in _SETTING if loss or not key.startswith("loss."))
    own = [f"{key}={json.dumps(flat[key], default=str)}" for key in shared]
    if loss:
        own.append(f"at a ratio: {flat[_RATIO] is not None}")
    return (row.runs[0].init, *own)


def _names(rows: Sequence[Row]) -> list[str]:
    """A name for the front of each row: its terms, and the keys in which fronts differ, of the loss among those of the
    same terms, of everything else among all. A key at its default is left out."""
    flats = [{**row.config.flat(), "init": row.runs[0].init} for row in rows]
    defaults = {**Config().flat(), "init": ""}
    found = []
    for row, own in zip(rows, flats, strict=True):
        objective = _objective(row.config)
        kin = [flat for other, flat in zip(rows, flats, strict=True) if _objective(other.config) == objective]
        differing = [
            key
            for key in (*_SETTING, "init")
            if own[key] != defaults[key]
            and any(flat[key] != own[key] for flat in (kin if key.startswith("loss.") else flats))
        ]
        words = [" + ".join(TERMS[name].label for name in objective)]
        if own[_RATIO] is not None:
            words.append("by gradient ratio")
        found.append(" ".join([*words, *(f"{key.rpartition('.')[2]}={short(own[key])}" for key in differing)]))
    return found
