"""Ray Tune's searchers, which choose the points, and its schedulers, which stop trials; set up for a sweep."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from ray import tune
from ray.tune import search as tune_search
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from typing_extensions import TypedDict

from pipelines import parsing
from pipelines.config import Config
from pipelines.runtime import files, private
from tuning.space import Domain, Point, Range, Space, SpaceError, identity
from tuning.trial import number_of, reports_of

Search = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "pbt", "none"]
SEARCHES, SCHEDULERS = get_args(Search), get_args(Scheduler)
REDUCTION = 3  # ASHA continues a third of the trials that reached a rung
# Keys that population-based training may change during a run: the saved state keeps its shape and its meaning.
_MUTABLE = ("train.lr", "train.clip", "loss.l1", "loss.weight")
_NEVER_0 = ("loss.weight",)  # of these: at 0 the term is left out, and the saved state has no queues
_TRIES = 200  # suggestions; after these without a new valid point, the space counts as exhausted


def budgets(scheduler: Scheduler, reports: int) -> list[int]:
    """The parts of a trial after which it is measured, in units of which the last part is the whole.

    For ASHA these are its rungs, powers of its reduction factor; otherwise they are equally spaced.
    """
    if scheduler == "asha":
        return [REDUCTION**k for k in range(reports)]
    return list(range(1, reports + 1))


def most_reports(scheduler: Scheduler) -> int:
    """How often a trial can be measured: no trial has as many steps as the last rung of one more, or as parts."""
    return 20 if scheduler == "asha" else 1000


def scheduler_of(name: Scheduler, space: Space, metric: str, mode: str, whole: int, *, seed: int) -> TrialScheduler:
    """Ray Tune's scheduler; its unit of time is the budget.

    Args:
        mode: "min" or "max", of the metric.
        whole: the whole budget.
        seed: of what population-based training draws.
    """
    if name == "asha":
        return Asha(
            time_attr="budget", metric=metric, mode=mode, max_t=whole, grace_period=1, reduction_factor=REDUCTION
        )
    if name == "pbt":
        return PopulationBased(
            seed=seed,
            time_attr="budget",
            metric=metric,
            mode=mode,
            perturbation_interval=1,
            synch=True,  # all are compared at the same budget; otherwise the outcome depends on their timing
            hyperparam_mutations={"trial": {"point": {key: _mutation(domain) for key, domain in space.items()}}},
            custom_explore_fn=partial(_within, space),
        )
    return FIFOScheduler()


class Asha(ASHAScheduler):
    """Ray Tune's, which in a resumed sweep compares with the trials of before too: Ray Tune saves no scheduler.

    Ray Tune pickles it, and a resumed sweep unpickles it: its name stays.
    """

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        decided = trial.last_result.get("budget", 0)  # a later report that is in its folder already will come again
        folder = Path(trial.config["folder"])
        for budget, metrics in reports_of(folder, number_of(folder, trial.trial_id, trial.config)).items():
            if budget <= decided:
                super().on_trial_result(tune_controller, trial, {**metrics, "budget": budget})


class PopulationBased(PopulationBasedTraining):
    """Ray Tune's in synchronous mode, which also goes on when a trial has failed and when a sweep is resumed.

    Ray Tune's waits in each round for the report of every trial, of those that failed too. After a resume it waits for
    the first round, which is long over. And it draws from generators without a seed: here what is drawn is a function
    of the seed and the round.

    Ray Tune pickles it, and a resumed sweep unpickles it: its name stays.
    """

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        if "budget" in trial.last_result and not trial.is_finished():  # of a resumed sweep
            private.remember_report(self, trial, trial.last_result)
            trial.set_status(TuneTrial.PAUSED)  # until its round begins

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        with _seeded(self.seed, int(result["budget"])):
            return str(super().on_trial_result(_Unfinished(tune_controller), trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        chosen = super().choose_trial_to_run(tune_controller)
        waiting = _Unfinished(tune_controller).get_live_trials()
        if chosen is not None or not waiting or any(trial.status != TuneTrial.PAUSED for trial in waiting):
            return chosen
        # All wait for the end of a round: the last trial in it has failed, or the sweep was resumed.
        for trial in waiting:
            self.on_trial_result(tune_controller, trial, trial.last_result)  # compares them, unless they have been
        private.begin_round(self, waiting)
        return super().choose_trial_to_run(tune_controller)


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Python's and NumPy's shared generators begin anew at a function of the numbers, and are put back at the end."""
    before = random.getstate(), np.random.get_state()
    random.seed(repr(numbers))
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


class _Unfinished:
    """Ray Tune's controller, without the trials that failed among those that it calls live."""

    def __init__(self, tune_controller: Any) -> None:
        self.tune_controller = tune_controller

    def get_live_trials(self) -> list[TuneTrial]:
        return [trial for trial in self.tune_controller.get_trials() if not trial.is_finished()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tune_controller, name)


def _within(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """A trial's config with its point inside the ranges of the space: Ray Tune multiplies a value by 0.8 or 1.2.

    Ray Tune pickles it, and a resumed sweep unpickles it: its name stays.
    """
    point = dict(config["trial"]["point"])
    for key, domain in space.items():
        if isinstance(domain, Range):
            number = min(max(point[key], domain.low), domain.high)
            point[key] = round(number) if domain.whole else float(number)
    return {**config, "trial": {**config["trial"], "point": point}}


def check_mutable(space: Space) -> None:
    """Make sure that population-based training, which changes keys during a run, may change these to these values.

    Raises:
        SpaceError: names the first key that it may not.
    """
    for key, domain in space.items():
        if key not in _MUTABLE:
            raise SpaceError(
                f"{key}: cannot change during a run, as population-based training requires; it can search "
                f"{', '.join(_MUTABLE)}; or give --scheduler asha"
            )
        values = [domain.low] if isinstance(domain, Range) else domain
        if key in _NEVER_0 and any(Config().replace({key: value}).flat()[key] == 0 for value in values):
            raise SpaceError(
                f"{key}: a trial at 0 has no feature queues, which one that goes on from it at another value needs, as "
                "population-based training requires; leave 0 out of the space, or give --scheduler asha"
            )


def optuna(
    space: Space,
    metrics: Sequence[str],
    modes: Sequence[str],
    *,
    seed: int,
    folder: Path,
    reason: Callable[[Point], str | None],
    concurrent: int,
) -> Searcher:
    """Optuna's search (TPE; NSGA-II for several metrics), restricted to valid points.

    Args:
        modes: "min" or "max", for each metric.
        folder: of the sweep.
        reason: why a point is no valid configuration; None if it is.
        concurrent: at most so many trials at once.
    """
    import optuna as library

    library.logging.set_verbosity(library.logging.ERROR)
    single = len(metrics) == 1
    samplers = library.samplers
    # A choice is searched by its index in the list, since a list may hold values of any type.
    inner = OptunaSearch(
        space={key: _distribution(domain) for key, domain in space.items()},
        metric=metrics[0] if single else list(metrics),
        mode=modes[0] if single else list(modes),
        sampler=samplers.TPESampler(seed=seed) if single else samplers.NSGAIISampler(seed=seed),
    )
    return ConcurrencyLimiter(Valid(inner, space, folder, reason), max_concurrent=concurrent)


class ConcurrencyLimiter(tune_search.ConcurrencyLimiter):
    """Ray Tune's, which forgets neither what a resumed sweep is asked for nor the points that it lost.

    Ray Tune saves its state every few seconds. A point that was suggested after the last time is unknown to a sweep
    that was killed and resumed, and is suggested again.

    Ray Tune pickles it, and keeps its state under the name of the class: that is Ray Tune's own, and it stays.
    """

    def __init__(self, searcher: Valid, max_concurrent: int) -> None:
        super().__init__(searcher, max_concurrent=max_concurrent)
        self.suggested: list[str] = []  # the trials that there are

    def suggest(self, trial_id: str) -> Any:
        suggestion = super().suggest(trial_id)
        if suggestion is not None and suggestion != Searcher.FINISHED:
            self.suggested.append(trial_id)
        return suggestion

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "max_concurrent": self.max_concurrent})
        self.searcher.suggest_again(except_for=self.suggested)


class _Suggestion(TypedDict):
    """A point that was suggested, and the trial's name here and in the inner searcher."""

    trial: str
    asked: str  # "": the inner searcher has lost it
    point: dict[str, Any]


class Valid(Searcher):
    """Asks another searcher until it suggests a point that is valid and was not tried yet.

    Ray Tune pickles it, and a resumed sweep unpickles it: its name and the names of its attributes stay.

    Args:
        inner: the searcher; for a choice it suggests the index in the list.
        folder: of the sweep; it keeps the points suggested so far, so that a resumed sweep continues the numbers.
    """

    def __init__(self, inner: Searcher, space: Space, folder: Path, reason: Callable[[Point], str | None]) -> None:
        super().__init__(metric=inner.metric, mode=inner.mode)
        self.inner, self.space, self.reason = inner, space, reason
        self.file = folder / "suggested.json"

    lost: Sequence[int] = ()  # numbers of trials that are to be suggested again; not in pickles of earlier versions

    def suggest_again(self, *, except_for: Collection[str]) -> None:
        """Begin with the points that were suggested to other trials than these."""
        self.lost = [number for number, entry in enumerate(self._known()) if entry["trial"] not in except_for]

    def suggest(self, trial_id: str) -> Any:
        known = self._known()
        if self.lost:
            number, *self.lost = self.lost
            point = known[number]["point"]
            known[number] = {"trial": trial_id, "asked": "", "point": point}
            files.write_text(self.file, json.dumps(known))
            return self._config(number, point)
        tried = {identity(entry["point"]) for entry in known}
        for attempt in range(_TRIES):
            asked = f"{trial_id}-{attempt}"  # to the searcher, every suggestion is a trial of its own
            chosen = self.inner.suggest(asked)
            if chosen is None or chosen == Searcher.FINISHED:
                return chosen
            point = {}
            for key, choice in chosen.items():
                domain = self.space[key]
                point[key] = choice if isinstance(domain, Range) else domain[choice]
            if identity(point) not in tried and self.reason(point) is None:
                entries = [*known, {"trial": trial_id, "asked": asked, "point": point}]
                files.write_text(self.file, json.dumps(entries))
                return self._config(len(known), point)
            self.inner.on_trial_complete(asked, error=True)
        return Searcher.FINISHED

    def _known(self) -> list[_Suggestion]:
        if not self.file.exists():
            return []
        remedy = "the sweep cannot be resumed; choose another --name"
        return parsing.read_json(self.file, list[_Suggestion], error=SpaceError, remedy=remedy)

    def _config(self, number: int, point: Point) -> dict[str, Any]:
        return {"folder": str(self.file.parent), "trial": {"number": number, "point": point}}

    def _entry(self, trial_id: str) -> _Suggestion:
        return next(entry for entry in self._known() if entry["trial"] == trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # `inner` was given its space when it was made

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if asked := self._entry(trial_id)["asked"]:
            self.inner.on_trial_result(asked, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        entry = self._entry(trial_id)
        if entry["asked"]:
            self.inner.on_trial_complete(entry["asked"], result=result, error=error)
        elif isinstance(self.metric, str):  # Optuna can be told of a further point for a single metric only
            value = (result or {}).get(self.metric, math.nan)
            choices = {key: _choice(self.space[key], value) for key, value in entry["point"].items()}
            self.inner.add_evaluated_point(choices, value, error=not math.isfinite(value))

    def save(self, checkpoint_path: str) -> None:
        self.inner.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.inner.restore(checkpoint_path)


def _choice(domain: Domain, value: Any) -> Any:
    """A value as the inner searcher knows it: a number of a range, or the index in a list."""
    return value if isinstance(domain, Range) else [identity({"": one}) for one in domain].index(identity({"": value}))


def _distribution(domain: Domain) -> Any:
    """A domain for Optuna."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(domain, Range):
        return CategoricalDistribution(list(range(len(domain))))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _mutation(domain: Domain) -> Any:
    """A domain for population-based training."""
    if not isinstance(domain, Range):
        return domain
    if domain.whole:
        return tune.lograndint(domain.low, domain.high + 1) if domain.log else tune.randint(domain.low, domain.high + 1)
    return tune.loguniform(domain.low, domain.high) if domain.log else tune.uniform(domain.low, domain.high)
