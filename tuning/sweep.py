"""What a sweep is, and whether it can be done: everything that is known before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from d2sm.features import features
from pipelines.config import Config
from pipelines.data import splits
from pipelines.evaluate import check as check_evaluation
from pipelines.experiment import resolved
from pipelines.runs.folder import check_name, runs_folder
from pipelines.training import objective
from tuning import search, space
from tuning.search import Scheduler, Search
from tuning.space import Point, Space, SpaceError


@dataclass(frozen=True)
class Sweep:
    """What is searched, how, and by which numbers.

    Args:
        base: the configuration that points change; its train.storage holds the sweep's folder.
        space: dotted key -> values (see `tuning.space`).
        name: of the sweep; the same name goes on with it.
        trials: how many points; None with search="grid": all of them.
        search: "random", "grid" or "optuna".
        scheduler: "asha" stops bad trials early, "pbt" lets them take over better ones' state, "none".
        metrics: the objective; several give a Pareto front (ASHA and PBT go by the first).
        reports: how often a trial is measured.
    """

    base: Config
    space: Space
    name: str
    trials: int | None = None
    search: Search = "random"
    scheduler: Scheduler = "asha"
    metrics: tuple[str, ...] = ("psnr.sigma25",)
    reports: int = 3

    @property
    def evaluates(self) -> bool:
        """Whether a trial is evaluated: any metric that training does not give."""
        return any(metric not in self.trained for metric in self.metrics)

    @property
    def trained(self) -> list[str]:
        """Metrics that every trial gives while it trains; a term whose weight is searched may be off in some."""
        keys = {"d2sm": "loss.weight"}
        terms = [term for term in self.base.loss.terms if keys.get(term, f"loss.{term}") not in self.space]
        return ["loss", "gradient_norm", *(f"loss.{term}" for term in dict.fromkeys(["l1", *terms]))]

    @property
    def budgets(self) -> list[int]:
        """After how much of its whole budget, the last, a trial is measured."""
        return search.budgets(self.scheduler, self.reports)

    @property
    def folder(self) -> Path:
        """Where the sweep and its trials are kept."""
        return runs_folder(self.base, what="a sweep") / self.name

    def at(self, point: Point) -> Config:
        """A point's whole configuration."""
        return self.base.replace(point)

    def facts(self) -> dict[str, Any]:
        """What makes a sweep the same sweep, beside its base; as JSON holds it."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("base", "name")}
        return {**kept, "space": space.plain(self.space), "metrics": list(self.metrics)}


class Reason:
    """Why a point is no configuration of this data set and Phi; None when it is one. Survives pickling."""

    def __init__(self, base: Config, items: pa.Table) -> None:
        self.base, self.items = base, items
        self.strides: dict[str, int] = {}

    def __call__(self, point: Point) -> str | None:
        try:
            config = self.base.replace(point)
            splits.check_sizes(config, self.items)
            size = config.loss.patch_size
            if config.loss.weight and size and size % self._stride(config):
                return f"loss.patch_size={size}: no multiple of the stride of {config.loss.features}"
        except ValueError as error:
            return str(error)
        return None

    def _stride(self, config: Config) -> int:
        name = config.loss.features
        if name not in self.strides:
            self.strides[name] = features(name, weights="random").stride
        return self.strides[name]


def settled(sweep: Sweep) -> Sweep:
    """The sweep with everything spelled out that a trial in another process needs: absolute paths, the tracking URI.

    Raises:
        ConfigError, TrackingError: a name with folders, a password in the URI.
    """
    base = resolved(sweep.base, what="a sweep")
    check_name(sweep.name, "name")
    return replace(sweep, base=base.replace({"train.name": "", "tracking.register_as": "", "tracking.parent": ""}))


def check(sweep: Sweep) -> tuple[list[Point] | None, str, Reason]:
    """Everything that can be known before the start.

    Returns:
        The points (None: Optuna chooses them as it goes), how many combinations were left out with an example, and
        the judge of further points.

    Raises:
        SpaceError, ConfigError, DataError: one line each.
    """
    space.check(sweep.space, sweep.base)
    _check_choices(sweep)
    reason = Reason(sweep.base, splits.training_images(sweep.base))
    objective.check_objective(sweep.base)
    if sweep.evaluates:
        check_evaluation(sweep.base)
    points, excluded = _points(sweep, reason)
    return points, excluded, reason


def _points(sweep: Sweep, reason: Callable[[Point], str | None]) -> tuple[list[Point] | None, str]:
    ranges = any(isinstance(domain, space.Range) for domain in sweep.space.values())
    every = [] if ranges and sweep.search != "grid" else list(space.grid(sweep.space))
    if sweep.search == "grid":
        points = [point for point in every if reason(point) is None]
    else:
        points = space.draw(sweep.space, sweep.trials or 1, sweep.base.train.seed, reason)
    if not points:
        example = {key: d.low if isinstance(d, space.Range) else d[0] for key, d in sweep.space.items()}
        raise SpaceError(f"space: holds no configuration; {reason(example) or 'none was found'}")
    wrong = [why for point in every if (why := reason(point))]
    excluded = f"{len(wrong)} of {len(every)} combinations left out, such as {wrong[0]}" if wrong else ""
    return None if sweep.search == "optuna" else points, excluded


def _check_choices(sweep: Sweep) -> None:
    choices = (("search", sweep.search, search.SEARCHES), ("scheduler", sweep.scheduler, search.SCHEDULERS))
    for name, value, allowed in choices:
        if value not in allowed:
            raise SpaceError(f"{name}={value!r}: one of {', '.join(allowed)}")
    if sweep.search == "grid" and sweep.trials is not None:
        raise SpaceError(f"trials={sweep.trials}: a grid tries every point; leave it out, or search at random")
    if sweep.search != "grid" and (sweep.trials is None or sweep.trials < 1):
        raise SpaceError(f"trials={sweep.trials}: give how many points to try, at least 1")
    if sweep.reports < 1:
        raise SpaceError(f"reports={sweep.reports}: at least 1")
    if not sweep.metrics:
        raise SpaceError("metrics: name at least one")
    known = [*sweep.trained, *_evaluated(sweep.base)]
    for metric in sweep.metrics:
        if metric not in known:
            hint = "; for MIoU give evaluate.segmenter" if metric.startswith("miou") else ""
            raise SpaceError(f"metric {metric}: not measured; known: {', '.join(known)}{hint}")
    if sweep.scheduler == "pbt":
        search.check_mutable(sweep.space)
        if sweep.search == "optuna":
            raise SpaceError("search=optuna: population-based training changes the points itself; use random or grid")


def _evaluated(config: Config) -> list[str]:
    names = ["psnr", "ssim", *(["miou"] if config.evaluate.segmenter else [])]
    levels = ["pair"] if config.data.layout == "pairs" else [f"{sigma:g}" for sigma in config.evaluate.sigmas]
    return [f"{name}.sigma{level}" for name in names for level in levels]
