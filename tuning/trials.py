"""The trials of a sweep: what each reached, which are best, and their table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines import parsing
from pipelines.runs.results import higher_is_better
from pipelines.runtime import files
from pipelines.text import columns
from tuning.space import Point, SpaceError

State = Literal["waiting", "running", "finished", "stopped", "failed"]
FILE = "trials.json"


@dataclass(frozen=True)
class TrialSummary:
    """A trial as trials.json keeps it.

    Attributes:
        number: of the trial, from 0.
        point: what it tries.
        state: "stopped": by the scheduler, before its whole budget.
        share: the fraction of its budget it has used.
        seconds: it has run.
        metrics: its newest values.
        why: it failed; "" if it did not.
    """

    number: int
    point: Point
    state: State
    share: float
    seconds: float
    metrics: Mapping[str, float]
    why: str = ""

    def value(self, metric: str) -> float:
        """The newest value of a metric; NaN if there is none."""
        return float(self.metrics.get(metric, math.nan))


def save(trials: Sequence[TrialSummary], folder: Path) -> None:
    """Write trials.json."""
    files.write_text(folder / FILE, json.dumps([asdict(trial) for trial in trials], indent=1))


def load(folder: Path) -> list[TrialSummary]:
    """Read trials.json; empty before the first trial has begun. Raises SpaceError: it is damaged."""
    path = folder / FILE
    if not path.exists():
        return []
    return parsing.read_json(path, list[TrialSummary], error=SpaceError, remedy="remove the file; it is written anew")


def mode(metric: str) -> Literal["min", "max"]:
    """Ray Tune's word for the direction in which a metric is optimised."""
    return "max" if higher_is_better(metric) else "min"


def ranked(trials: Sequence[TrialSummary], metric: str) -> list[TrialSummary]:
    """Best first among those that used their whole budget, then the others by the budget used.

    Failed trials and those without a value come last.
    """

    def order(trial: TrialSummary) -> tuple[float, float, int]:
        value = trial.value(metric)
        if math.isnan(value) or trial.state == "failed":
            return (1, 0, trial.number)
        return (-trial.share, -value if higher_is_better(metric) else value, trial.number)

    return sorted(trials, key=order)


def best(trials: Sequence[TrialSummary], metric: str) -> TrialSummary | None:
    """The best finished trial; None while there is none."""
    finished = [trial for trial in trials if trial.state == "finished" and not math.isnan(trial.value(metric))]
    return ranked(finished, metric)[0] if finished else None


def front(trials: Sequence[TrialSummary], metrics: Sequence[str]) -> list[TrialSummary]:
    """The Pareto front of the finished trials: those that no other trial dominates.

    A trial dominates another if it is as good in every metric and better in one.
    """

    def scores(trial: TrialSummary) -> list[float]:
        return [trial.value(metric) if higher_is_better(metric) else -trial.value(metric) for metric in metrics]

    finished = [(trial, scores(trial)) for trial in trials if trial.state == "finished"]

    def dominated(own: list[float]) -> bool:
        return any(
            all(theirs >= ours for theirs, ours in zip(other, own, strict=True)) and other != own
            for _, other in finished
        )

    return [trial for trial, own in finished if not any(map(math.isnan, own)) and not dominated(own)]


def cells(trials: Sequence[TrialSummary], keys: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    """Header and a line a trial; `*` marks the best trial or, for several metrics, the Pareto front."""
    marked = front(trials, metrics) if len(metrics) > 1 else [best(trials, metrics[0])]
    lines = [["trial", "state", *keys, "budget", *metrics]]
    for trial in trials:
        values = ["" if math.isnan(value := trial.value(metric)) else f"{value:.4g}" for metric in metrics]
        if trial in marked:
            values[0] += " *"
        point = (short(trial.point[key]) for key in keys)
        lines.append([f"{trial.number:03d}", trial.state, *point, f"{trial.share:.0%}", *values])
    return lines


def text(trials: Sequence[TrialSummary], keys: Sequence[str], metrics: Sequence[str]) -> str:
    """The ranked table as text, and below it why trials failed."""
    table = columns(cells(ranked(trials, metrics[0]), keys, metrics))
    return "\n".join(
        [table, *(f"{trial.number:03d} failed: {trial.why}" for trial in trials if trial.state == "failed")]
    )


def short(value: Any) -> str:
    """A value of a key with at most four digits."""
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
