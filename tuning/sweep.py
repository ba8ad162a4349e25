"""What a sweep is, and everything that can be checked before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from d2sm.objectives import TERMS
from pipelines import config as configs
from pipelines import experiment
from pipelines.check import NotReady, refuse
from pipelines.check import check as check_run
from pipelines.config import Config
from pipelines.data import plan, splits
from pipelines.networks.features import PatchError, check_patch_size
from pipelines.runs.folder import RunFolder, runs_folder
from pipelines.runs.names import check_name
from pipelines.runs.results import metric_names
from pipelines.runtime.progress import slow_stage
from pipelines.text import counted, one_line
from pipelines.training import initial
from tuning import search, space
from tuning.search import Scheduler, Search
from tuning.space import Point, Space, SpaceError
from tuning.trial import SETTINGS, step_at

T = TypeVar("T")


@dataclass(frozen=True)
class Sweep:
    """What is searched, how, and by which metrics.

    Args:
        base: the configuration that the points change; its `train.storage` holds the sweep's folder.
        space: dotted key -> values (see `tuning.space`).
        name: of the sweep; the same name resumes it.
        trials: how many points are tried; None with search="grid": all.
        search: "random", "grid" or "optuna".
        scheduler: "asha" stops bad trials early; "pbt" (population-based training) replaces the state of bad trials by
            that of better ones; "none" lets all run to their end.
        metrics: the objectives; several give a Pareto front, and ASHA and PBT use the first.
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
        """Whether trials are evaluated: some metric is not one of training."""
        return any(metric not in self.trained for metric in self.metrics)

    @property
    def trained(self) -> list[str]:
        """The metrics that training gives in every trial; a term whose weight is searched may be off in some."""
        terms = [term for term in self.base.loss.terms if f"loss.{TERMS[term].weight_key}" not in self.space]
        return ["loss", "gradient_norm", *(f"loss.{term}" for term in dict.fromkeys(["l1", *terms]))]

    @property
    def budgets(self) -> list[int]:
        """The parts of a trial's budget after which it is measured; the last is the whole."""
        return search.budgets(self.scheduler, self.reports)

    @property
    def folder(self) -> Path:
        """The folder of the sweep, which holds those of its trials."""
        return runs_folder(self.base, what="a sweep") / self.name

    def configuration(self, point: Point) -> Config:
        """The configuration of a point."""
        return self.base.replace(point)

    def settings(self) -> dict[str, Any]:
        """Everything but base and name, in JSON's types: what must be the same for a sweep to be resumed."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("base", "name")}
        return {**kept, "space": space.to_tree(self.space), "metrics": list(self.metrics)}


class Candidates(NamedTuple):
    """What a sweep will try.

    Attributes:
        points: all of them; None where Optuna chooses them as it goes.
        excluded: how many combinations are no valid configuration, with an example; "" if all are valid, or if there
            are too many to look at each (`space.LISTED`).
        reason: why a further point is not valid.
        valid: how many valid combinations there are; None if there are too many to look at each.
    """

    points: list[Point] | None
    excluded: str
    reason: Reason
    valid: int | None


class Reason:
    """Why a point is no valid configuration for these images and Phi; None if it is.

    That is a reason against a combination. A value that cannot be used in any, such as weights that cannot be read, is
    none: `_check_point` refuses the sweep for it.

    Ray Tune pickles it, and a resumed sweep unpickles it: its name and the names of its attributes stay.
    """

    def __init__(self, base: Config, items: pa.Table) -> None:
        self.base, self.items = base, items

    def __call__(self, point: Point) -> str | None:
        try:
            config = self.base.replace(point)
            splits.check_sizes(config, self.items)
        except ValueError as error:
            return str(error)
        try:
            check_patch_size(config.loss)
            if config.train.init and (config.train.init, config.model) != (self.base.train.init, self.base.model):
                initial.read(config)
        except (PatchError, initial.MisfitError) as error:
            return str(error)
        except ValueError:
            pass
        return None


def resolved(sweep: Sweep) -> Sweep:
    """The sweep as trials in other processes need it: with absolute paths and the tracking URI.

    Raises:
        ConfigError, TrackingError: a name that is not plain; `train.storage` is a URI; a password in the tracking URI.
    """
    base = experiment.resolved(sweep.base, what="a sweep")
    check_name(sweep.name, "name")
    domain = sweep.space.get("train.init")
    if isinstance(domain, list):
        pinned = [initial.pinned(sweep.base.replace({"train.init": value})) if value else "" for value in domain]
        sweep = replace(sweep, space={**sweep.space, "train.init": pinned})
    return replace(sweep, base=base.replace({"train.name": "", "tracking.register_as": "", "tracking.parent": ""}))


def check(sweep: Sweep) -> Candidates:
    """Check everything that can be known before the start.

    Args:
        sweep: its base is settled (`splits.settled`).

    Raises:
        SpaceError, ConfigError, DataError, SegmenterError, EvaluationError: the only reason against it, one line.
        NotReady: several reasons.
    """
    reasons: list[Exception] = []

    def attempt(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except NotReady as error:
            reasons.extend(map(ValueError, error.reasons))
        except (ValueError, OSError) as error:
            reasons.append(error)
        return None

    attempt(lambda: space.check(sweep.space))
    attempt(lambda: _check_choices(sweep))
    attempt(RunFolder.at(sweep.folder).check_no_run)
    ready = attempt(lambda: check_run(sweep.base, evaluates=sweep.evaluates, given=splits.SETTLED))
    refuse(reasons)
    assert ready is not None  # else there was a reason
    reason = Reason(sweep.base, ready.training)
    known: dict[str, str | None] = {}

    def why_not(point: Point) -> str | None:
        """As `reason`, which takes milliseconds, but each point is looked at once."""
        name = space.identity(point)
        if name not in known:
            known[name] = reason(point)
        return known[name]

    every = sweep.search == "grid"
    combinations = list(space.grid(sweep.space)) if every or space.size(sweep.space) <= space.LISTED else []
    with slow_stage("looking for combinations of the space that are valid configurations"):
        wrong = [why for point in combinations if (why := why_not(point))]
        valid = [point for point in combinations if why_not(point) is None]
        if every:
            points = valid
        else:  # Optuna chooses its points itself: one shows that there are any
            count = 1 if sweep.search == "optuna" else sweep.trials or 1
            points = space.draw(sweep.space, count, sweep.base.train.seed, why_not)
    if not points:
        example = {key: d.low if isinstance(d, space.Range) else d[0] for key, d in sweep.space.items()}
        raise SpaceError(f"space: no combination is a valid configuration; {reason(example) or 'none was found'}")
    chosen = points
    if sweep.search == "optuna":  # it may choose any
        chosen = valid or points + [{**points[0], **value} for value in space.listed(sweep.space)]
        chosen = [point for point in chosen if why_not(point) is None]
    _check_reports(sweep, chosen, ready.training.num_rows)
    for title, point in _representatives(sweep, chosen).items():
        attempt(partial(_check_point, sweep, title, point))
    refuse(reasons)
    excluded = f"{len(wrong)} of {len(combinations)} combinations left out, such as {wrong[0]}" if wrong else ""
    return Candidates(
        None if sweep.search == "optuna" else points, excluded, reason, len(valid) if combinations else None
    )


def _representatives(sweep: Sweep, points: Sequence[Point]) -> dict[str, Point]:
    """The points whose configurations need something that the base does not, by what that is, as key=value.

    That is one for each value that is or may hold a name (of a network, a layer, a split, ...), or an option of
    somebody's own network; and one in which each term is on that is off in the base.
    """
    off = {key for term in TERMS.values() if not sweep.base.flat()[key := f"loss.{term.weight_key}"]}
    asked: set[str] = set()
    found: dict[str, tuple[str, Point]] = {}
    for point in points:
        for key, value in point.items():
            named = isinstance(value, (str, list, tuple)) or configs.owner(key) != key
            title = f"{key}={value}"
            about = title if named and isinstance(sweep.space[key], list) else key if key in off and value else None
            if about is not None and about not in asked:
                asked.add(about)
                found.setdefault(space.identity(point), (title, point))
    return dict(found.values())


def _check_point(sweep: Sweep, title: str, point: Point) -> None:
    """Check a point as its trial will be checked.

    Args:
        title: a key and a value that it is checked for.

    Raises:
        SpaceError: what speaks against it.
        NotReady: if that is more than one reason. Each line names a key.
    """
    try:
        check_run(sweep.configuration(point), evaluates=False, given=splits.SETTLED, say=lambda line: None)
    except (ValueError, OSError) as error:
        lines = error.reasons if isinstance(error, NotReady) else [one_line(error, None)]
        lines = [line if any(key in line for key in point) else f"{title}: {line}" for line in lines]
        raise (SpaceError(*lines) if len(lines) == 1 else NotReady(*lines)) from None


def _check_reports(sweep: Sweep, points: Sequence[Point], images: int) -> None:
    """Make sure that each measurement of a trial is at a step of its own; a sweep that was begun goes on without.

    Raises:
        SpaceError: two of the shortest trial are not.
    """
    if (sweep.folder / SETTINGS).exists():
        return
    longer = any(key in sweep.space for key in ("train.epochs", "train.batch_size", "data.crops_per_image"))
    configurations = map(sweep.configuration, points) if longer else [sweep.base]
    least = min(plan.total_steps(config, images) for config in configurations)

    def fit(reports: int) -> bool:
        budgets = search.budgets(sweep.scheduler, reports)
        return len({step_at(budget, budgets[-1], least) for budget in budgets}) == reports

    if not fit(sweep.reports):
        most = next(reports for reports in range(sweep.reports, 0, -1) if fit(reports))
        raise SpaceError(
            f"reports={sweep.reports}: two of them would be at the same step of a trial of {counted(least, 'step')}; "
            f"give at most {most}, or train for more epochs"
        )


def _check_choices(sweep: Sweep) -> None:
    choices = (("search", sweep.search, search.SEARCHES), ("scheduler", sweep.scheduler, search.SCHEDULERS))
    for name, value, allowed in choices:
        if value not in allowed:
            raise SpaceError(f"{name}={value!r}: one of {', '.join(allowed)}")
    if sweep.search == "grid" and sweep.trials is not None:
        raise SpaceError(f"--trials {sweep.trials}: a grid tries every point; leave it out, or give --search random")
    if sweep.search != "grid" and (sweep.trials is None or sweep.trials < 1):
        given = "" if sweep.trials is None else f" {sweep.trials}"
        raise SpaceError(
            f"--trials{given}: give the number of points to try, at least 1; or --search grid, which tries all"
        )
    most = search.most_reports(sweep.scheduler)
    if not 1 <= sweep.reports <= most:
        raise SpaceError(f"reports={sweep.reports}: at least 1, and at most {most} with scheduler {sweep.scheduler}")
    if not sweep.metrics:
        raise SpaceError("metrics: name at least one")
    measured = metric_names(sweep.base, segmented=bool(sweep.base.evaluate.segmenter))
    known = [*sweep.trained, *measured]
    for metric in sweep.metrics:
        if metric not in known:
            hint = "; for MIoU set evaluate.segmenter" if metric.startswith("miou") else ""
            raise SpaceError(f"metric {metric}: not measured in this sweep; measured are {', '.join(known)}{hint}")
    if sweep.scheduler == "pbt":
        search.check_mutable(sweep.space)
        if sweep.search == "optuna":
            raise SpaceError("search=optuna: population-based training changes the points itself; use random or grid")
