"""Which points are tried, and which trials are stopped: the searchers and schedulers of Ray Tune, set up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from pipelines.runtime import files
from tuning.space import Domain, Point, Range, Space, SpaceError, name_of

Search = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "pbt", "none"]
SEARCHES, SCHEDULERS = get_args(Search), get_args(Scheduler)
REDUCTION = 3  # ASHA goes on with a third of the trials that came so far
# Keys that population-based training may change halfway: they leave the saved state's shape and meaning alone.
_MUTABLE = ("train.lr", "train.clip", "loss.l1", "loss.weight")
_TRIES = 200


def budgets(scheduler: Scheduler, reports: int) -> list[int]:
    """After how much of a trial it is measured, in units of which the last is the whole.

    ASHA's rungs are powers of its reduction factor; others are measured at equal distances.
    """
    if scheduler == "asha":
        return [REDUCTION**k for k in range(reports)]
    return list(range(1, reports + 1))


def scheduler_of(name: Scheduler, space: Space, metric: str, mode: str, whole: int) -> TrialScheduler:
    """Ray Tune's scheduler, counting in `budget`."""
    if name == "asha":
        return ASHAScheduler(
            time_attr="budget", metric=metric, mode=mode, max_t=whole, grace_period=1, reduction_factor=REDUCTION
        )
    if name == "pbt":
        return PopulationBasedTraining(
            time_attr="budget",
            metric=metric,
            mode=mode,
            perturbation_interval=1,
            synch=True,  # all are compared at the same budget; otherwise who takes over whom is a matter of time
            hyperparam_mutations={"trial": {"point": {key: _mutation(domain) for key, domain in space.items()}}},
        )
    return FIFOScheduler()


def check_mutable(space: Space) -> None:
    """Population-based training changes a running trial; not every key can be.

    Raises:
        SpaceError: names the first that cannot.
    """
    for key in space:
        if key not in _MUTABLE:
            raise SpaceError(
                f"{key}: cannot change in the middle of a run, as population-based training does; it takes "
                f"{', '.join(_MUTABLE)}; or say --scheduler asha"
            )


def optuna(
    space: Space,
    metrics: list[str],
    modes: list[str],
    *,
    seed: int,
    folder: Path,
    reason: Callable[[Point], str | None],
    concurrent: int,
) -> Searcher:
    """Optuna's search (TPE; NSGA-II for several metrics), kept to valid points, so many at once."""
    import optuna as library

    library.logging.set_verbosity(library.logging.ERROR)
    single = len(metrics) == 1
    samplers = library.samplers
    inner = OptunaSearch(
        space={key: _distribution(domain) for key, domain in space.items()},
        metric=metrics[0] if single else metrics,
        mode=modes[0] if single else modes,
        sampler=samplers.TPESampler(seed=seed) if single else samplers.NSGAIISampler(seed=seed),
    )
    return ConcurrencyLimiter(Valid(inner, space, folder, reason), max_concurrent=concurrent)


class Valid(Searcher):
    """Asks another searcher until it suggests a point that is a configuration and was not tried yet.

    Args:
        inner: the searcher; it chooses the place in a list, since a list may hold any value.
        folder: keeps the points suggested, so that a continued sweep goes on counting.
    """

    def __init__(self, inner: Searcher, space: Space, folder: Path, reason: Callable[[Point], str | None]) -> None:
        super().__init__(metric=inner.metric, mode=inner.mode)
        self.inner, self.space, self.reason = inner, space, reason
        self.file = folder / "suggested.json"

    def suggest(self, trial_id: str) -> Any:
        known = self._known()
        tried = {name_of(entry["point"]) for entry in known}
        for attempt in range(_TRIES):
            asked = f"{trial_id}-{attempt}"  # every question is a trial of its own to the searcher
            chosen = self.inner.suggest(asked)
            if chosen is None or chosen == Searcher.FINISHED:
                return chosen
            point = {key: _value(self.space[key], choice) for key, choice in chosen.items()}
            if name_of(point) not in tried and self.reason(point) is None:
                entries = [*known, {"trial": trial_id, "asked": asked, "point": point}]
                files.write_text(self.file, json.dumps(entries))
                return {"folder": str(self.file.parent), "trial": {"number": len(known), "point": point}}
            self.inner.on_trial_complete(asked, error=True)
        return Searcher.FINISHED

    def _known(self) -> list[dict[str, Any]]:
        return list(json.loads(self.file.read_text())) if self.file.exists() else []

    def _asked(self, trial_id: str) -> str:
        return next(str(entry["asked"]) for entry in self._known() if entry["trial"] == trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # `inner` has its space already

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.inner.on_trial_result(self._asked(trial_id), result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.inner.on_trial_complete(self._asked(trial_id), result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        self.inner.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.inner.restore(checkpoint_path)


def _value(domain: Domain, choice: Any) -> Any:
    return choice if isinstance(domain, Range) else domain[choice]


def _distribution(domain: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(domain, Range):
        return CategoricalDistribution(list(range(len(domain))))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _mutation(domain: Any) -> Any:
    if not isinstance(domain, Range):
        return domain
    if domain.whole:
        return tune.lograndint(domain.low, domain.high + 1) if domain.log else tune.randint(domain.low, domain.high + 1)
    return tune.loguniform(domain.low, domain.high) if domain.log else tune.uniform(domain.low, domain.high)
