"""Searchers and schedulers: only points that are configurations, each once, and rungs that fit the budget."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher, SearchGenerator

from pipelines.runtime import private
from tuning.search import ConcurrencyLimiter, Valid, budgets, check_mutable, optuna, scheduler_of
from tuning.space import Domain, Range, Space, SpaceError

SPACE: Space = {"loss.queue_size": [64, 256, 1024], "loss.patch_size": [None, 32]}


def reason(point: dict[str, Any]) -> str | None:
    return "too small" if point["loss.queue_size"] == 64 and point["loss.patch_size"] == 32 else None


def searcher(folder: Path, space: Space = SPACE, metrics: tuple[str, ...] = ("psnr.sigma25",)) -> Searcher:
    modes = ["max"] * len(metrics)
    return optuna(space, list(metrics), modes, seed=0, folder=folder, reason=reason, concurrent=2)


def suggest(search: Searcher, count: int, value: float = 20.0) -> list[Any]:
    found = []
    for number in range(count):
        config = search.suggest(f"{id(search)}-{number}")
        if config == Searcher.FINISHED:
            break
        found.append(config["trial"]["point"])
        search.on_trial_complete(f"{id(search)}-{number}", result={"psnr.sigma25": value + number})
    return found


def test_rungs_and_equal_parts() -> None:
    assert budgets("asha", 3) == [1, 3, 9]
    assert budgets("none", 1) == [1] and budgets("pbt", 4) == [1, 2, 3, 4]


def test_optuna_suggests_every_configuration_once(tmp_path: Path) -> None:
    found = suggest(searcher(tmp_path), 9)
    assert len(found) == 5 and all(found.count(point) == 1 and reason(point) is None for point in found)


def test_optuna_goes_on_where_it_was(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    before = suggest(first, 2)
    first.save(str(tmp_path / "state"))
    second = searcher(tmp_path)
    second.restore(str(tmp_path / "state"))
    after = suggest(second, 9)
    assert len(before + after) == 5 and not [point for point in after if point in before]
    assert len(json.loads((tmp_path / "suggested.json").read_text())) == 5


def test_a_point_that_a_killed_sweep_lost_is_suggested_again(tmp_path: Path) -> None:
    """Ray Tune saves its state every few seconds, and the points are written at once."""
    first = SearchGenerator(searcher(tmp_path))
    known = first.searcher.suggest("a")["trial"]
    first.save_to_dir(str(tmp_path), "state")
    lost = first.searcher.suggest("b")["trial"]
    second = SearchGenerator(searcher(tmp_path))
    second.restore_from_dir(str(tmp_path))
    assert second.searcher.suggest("c")["trial"] == lost == {"number": 1, "point": lost["point"]}
    assert known["number"] == 0 and second.searcher.suggest("d") is None  # two at once
    for name in "ac":
        second.on_trial_result(name, {"psnr.sigma25": 20.0, "training_iteration": 1})
        second.on_trial_complete(name, {"psnr.sigma25": 20.0})
    points = [known["point"], lost["point"]]
    for number in (2, 3, 4):
        trial = second.searcher.suggest(str(number))["trial"]
        assert trial["number"] == number and trial["point"] not in points
        points.append(trial["point"])
        second.on_trial_complete(str(number), {"psnr.sigma25": 20.0})
    assert second.searcher.suggest("e") == Searcher.FINISHED
    assert [entry["point"] for entry in json.loads((tmp_path / "suggested.json").read_text())] == points


@pytest.mark.parametrize("result", [{"psnr.sigma25": float("nan")}, {}, None])
def test_a_lost_point_that_fails_is_told_too(result: dict[str, float] | None, tmp_path: Path) -> None:
    first = SearchGenerator(searcher(tmp_path))
    first.save_to_dir(str(tmp_path), "state")
    first.searcher.suggest("a")
    second = SearchGenerator(searcher(tmp_path))
    second.restore_from_dir(str(tmp_path))
    assert second.searcher.suggest("b")["trial"]["number"] == 0
    second.on_trial_complete("b", result, error=result is None)
    assert second.searcher.suggest("c")["trial"]["number"] == 1


def test_a_resumed_search_takes_as_many_at_once_as_it_is_asked_for(tmp_path: Path) -> None:
    first = SearchGenerator(searcher(tmp_path))
    first.save_to_dir(str(tmp_path), "state")
    more = searcher(tmp_path)
    assert isinstance(more, ConcurrencyLimiter)
    more.max_concurrent = 4
    SearchGenerator(more).restore_from_dir(str(tmp_path))
    found = [more.suggest(str(number)) for number in range(5)]
    assert [config is not None for config in found] == [True] * 4 + [False]


@pytest.mark.parametrize("whole", [False, True])
def test_population_based_training_stays_in_the_range(whole: bool) -> None:
    domain = Range(1, 3) if whole else Range(1e-5, 1e-2, log=True)
    scheduler = scheduler_of("pbt", {"train.lr": domain, "loss.l1": [0.0, 1.0]}, "loss", "min", 3, seed=0)
    assert isinstance(scheduler, PopulationBasedTraining)
    better = SimpleNamespace(
        config={"folder": "f", "trial": {"number": 3, "point": {"train.lr": domain.high, "loss.l1": 1.0}}}
    )
    for _ in range(100):
        better.config, _ = scheduler._get_new_config(None, better)
        value = better.config["trial"]["point"]["train.lr"]
        assert domain.low <= value <= domain.high and isinstance(value, int if whole else float)
    assert better.config["folder"] == "f" and better.config["trial"]["number"] == 3


def _ended(folder: Path, number: int, losses: list[float], status: str = TuneTrial.TERMINATED) -> TuneTrial:
    """A trial of an ASHA sweep as Ray Tune restores it, with its reports at budgets 1, 3, ... in the sweep's folder."""
    trial = TuneTrial("t", stub=True, config={"folder": str(folder), "trial": {"number": number, "point": {}}})
    trial.set_status(status)
    reports = folder / f"{number:03d}" / "reports"
    reports.mkdir(parents=True)
    for budget, loss in zip(budgets("asha", 9), losses, strict=False):
        trial.update_last_result({"budget": budget, "loss": loss})
        (reports / f"{budget:04d}.json").write_text(json.dumps({"step": budget, "loss": loss}))
    return trial


def test_asha_compares_with_the_trials_before_a_resume(tmp_path: Path) -> None:
    scheduler = scheduler_of("asha", {}, "loss", "min", 9, seed=0)
    for number, losses in enumerate([[0.1, 0.05, 0.02], [0.2], [0.3]]):
        scheduler.on_trial_add(None, _ended(tmp_path, number, losses))
    worse, better = _ended(tmp_path, 3, []), _ended(tmp_path, 4, [])
    for trial in (worse, better):
        scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, worse, {"budget": 1, "loss": 0.25}) == TrialScheduler.STOP
    assert scheduler.on_trial_result(None, better, {"budget": 1, "loss": 0.09}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, better, {"budget": 3, "loss": 0.08}) == TrialScheduler.STOP


def test_asha_decides_on_a_report_that_a_killed_sweep_had_not_noted(tmp_path: Path) -> None:
    """The report is in the trial's folder, but Ray Tune's state is older: the trial reports it again."""
    scheduler = scheduler_of("asha", {}, "loss", "min", 9, seed=0)
    scheduler.on_trial_add(None, _ended(tmp_path, 0, [0.1]))
    killed = _ended(tmp_path, 1, [0.2], TuneTrial.PENDING)
    killed.update_last_result({})
    scheduler.on_trial_add(None, killed)
    assert scheduler.on_trial_result(None, killed, {"budget": 1, "loss": 0.2}) == TrialScheduler.STOP


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Ray Tune sets handlers of its own, and leaves them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_population_based_training_goes_on_after_trials_that_fail(
    ray_session: None, usual_signals: None, tmp_path: Path
) -> None:
    """One of four fails first in the first round, one last."""

    class Climb(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.number, self.budget = int(config["trial"]["number"]), 0

        def step(self) -> dict[str, Any]:
            self.budget += 1
            if self.number in (0, 3):
                raise ValueError("the loss is not finite")
            return {"budget": self.budget, "loss": self.number / self.budget, "done": self.budget == 2}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / "budget").write_text(str(self.budget))

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            self.budget = int((Path(checkpoint_dir) / "budget").read_text())

    scheduler = scheduler_of("pbt", {"train.lr": Range(1e-4, 1e-2, log=True)}, "loss", "min", 2, seed=0)
    numbered = [{"number": number, "point": {"train.lr": 1e-3}} for number in range(4)]
    results = tune.Tuner(
        tune.with_resources(Climb, {private.HEAD_NODE: 0.9}),  # one at a time
        param_space={"trial": tune.grid_search(numbered)},
        tune_config=tune.TuneConfig(scheduler=scheduler, time_budget_s=120),  # else a test that fails would not end
        run_config=tune.RunConfig(name="climb", storage_path=str(tmp_path), verbose=0),
    ).fit()
    ended = sorted((result.metrics or {}).get("budget", 0) for result in results)
    assert ended == [0, 0, 2, 2] and len(results.errors) == 2


class Population:
    """What Ray Tune does for a scheduler of population-based training, one trial at a time, without its processes."""

    search_alg = None

    def __init__(self, scheduler: TrialScheduler, budgets_before: Sequence[int]) -> None:
        self.scheduler, self.trials = scheduler, list[TuneTrial]()
        for number, budget in enumerate(budgets_before):
            trial = TuneTrial("t", stub=True, config={"trial": {"number": number, "point": {"train.lr": 1e-3}}})
            if budget:
                trial.update_last_result({"budget": budget, "loss": 0.1 * number})
            self.trials.append(trial)
            scheduler.on_trial_add(self, trial)

    def get_trials(self) -> list[TuneTrial]:
        return self.trials

    def get_live_trials(self) -> set[TuneTrial]:
        return set(self.trials)  # Ray Tune leaves those that failed in

    def turns(self, most: int, failing: Collection[int] = ()) -> list[tuple[int, int]]:
        """The numbers of the trials that run, one after the other, and the budgets that they reach."""
        found: list[tuple[int, int]] = []
        while len(found) < most and (chosen := self.scheduler.choose_trial_to_run(self)) is not None:
            number, budget = self.trials.index(chosen), chosen.last_result.get("budget", 0) + 1
            found.append((number, budget))
            chosen.set_status(TuneTrial.RUNNING)
            if number in failing:
                self.scheduler.on_trial_error(self, chosen)
                chosen.set_status(TuneTrial.ERROR)
                continue
            result = {"budget": budget, "loss": 0.1 * number}
            assert self.scheduler.on_trial_result(self, chosen, result) == TrialScheduler.PAUSE
            chosen.update_last_result(result)
            chosen.set_status(TuneTrial.PAUSED)
        return found


@pytest.mark.parametrize("failing", [(0,), (3,), (0, 3)])
def test_a_round_of_population_based_training_ends_when_trials_fail(failing: tuple[int, ...]) -> None:
    scheduler = scheduler_of("pbt", {"train.lr": [1e-3, 1e-2]}, "loss", "min", 5, seed=0)
    found = Population(scheduler, [0, 0, 0, 0]).turns(4 + 2 * (4 - len(failing)), failing)
    left = [number for number in range(4) if number not in failing]
    assert found[:4] == [(number, 1) for number in range(4)]
    assert sorted(found[4:]) == sorted((number, budget) for number in left for budget in (2, 3))
    assert [budget for _, budget in found[4:]] == [2] * len(left) + [3] * len(left)


def test_population_based_training_goes_on_after_a_stop() -> None:
    """Of three trials at budgets 3, 2 and 2 the latter run first; then all are compared, and take turns."""
    scheduler = scheduler_of("pbt", {"train.lr": [1e-3, 1e-2]}, "loss", "min", 6, seed=0)
    found = Population(scheduler, [3, 2, 2]).turns(8)
    assert sorted(found[:2]) == [(1, 3), (2, 3)]
    assert sorted(found[2:5]) == [(0, 4), (1, 4), (2, 4)] and sorted(found[5:]) == [(0, 5), (1, 5), (2, 5)]


def test_what_population_based_training_draws_is_a_function_of_seed_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(scheduler: PopulationBasedTraining, controller: object, trial: TuneTrial, result: dict[str, Any]) -> str:
        drawn.append((random.random(), np.random.random()))
        return TrialScheduler.PAUSE

    monkeypatch.setattr(PopulationBasedTraining, "on_trial_result", draw)
    trial, outside = TuneTrial("t", stub=True), random.getstate()
    for seed, budget in ((0, 1), (0, 1), (0, 2), (1, 1)):
        scheduler = scheduler_of("pbt", {"train.lr": [1e-3, 1e-2]}, "loss", "min", 6, seed=seed)
        scheduler.on_trial_result(None, trial, {"budget": budget, "loss": 0.5})
    assert drawn[0] == drawn[1] and len({*drawn}) == 3 and len({one for pair in drawn for one in pair}) == 6
    assert random.getstate() == outside


def test_optuna_searches_ranges_near_good_points(tmp_path: Path) -> None:
    space: Space = {"loss.queue_size": [1024], "loss.patch_size": [None], "loss.weight": Range(0.01, 100.0, log=True)}
    search = searcher(tmp_path, space)
    found = []
    for number in range(40):
        weight = search.suggest(str(number))["trial"]["point"]["loss.weight"]
        found.append(weight)
        search.on_trial_complete(str(number), result={"psnr.sigma25": -abs(weight - 1.0)})
    assert all(0.01 <= weight <= 100 for weight in found)
    near = [0.2 < weight < 5 for weight in found]
    assert sum(near[-15:]) > sum(near[:15])


def test_optuna_takes_several_metrics(tmp_path: Path) -> None:
    search = searcher(tmp_path, metrics=("psnr.sigma25", "miou.sigma25"))
    search.suggest("a")
    search.on_trial_complete("a", result={"psnr.sigma25": 20.0, "miou.sigma25": 0.4})
    assert search.suggest("b")["trial"]["number"] == 1


def test_what_cannot_change_halfway() -> None:
    check_mutable({"train.lr": [1e-3], "loss.weight": [1.0]})
    with pytest.raises(SpaceError, match="loss.queue_size: "):
        check_mutable({"train.lr": [1e-3], "loss.queue_size": [64]})


@pytest.mark.parametrize("domain", [[1.0, 0], ["0.0", 10], Range(0, 10), Range(0.0, 1.0)])
def test_a_term_with_a_state_is_not_switched_off_halfway(domain: Domain) -> None:
    check_mutable({"loss.weight": Range(0.1, 10.0), "loss.l1": domain, "train.clip": [None, 1.0]})
    with pytest.raises(SpaceError, match="^loss.weight: a trial at 0 .*leave 0 out.*") as error:
        check_mutable({"loss.weight": domain})
    assert "\n" not in str(error.value)


def test_a_wrapped_searcher_that_has_no_more(tmp_path: Path) -> None:
    class Empty(Searcher):
        def suggest(self, trial_id: str) -> str:
            return str(Searcher.FINISHED)

    assert Valid(Empty(), SPACE, tmp_path, reason).suggest("a") == Searcher.FINISHED
