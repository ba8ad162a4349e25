"""Searchers and schedulers: only points that are configurations, each once, and rungs that fit the budget."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search import Searcher, SearchGenerator

from tuning.search import ConcurrencyLimiter, Valid, budgets, check_mutable, optuna, scheduler_of
from tuning.space import Range, Space, SpaceError

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
    scheduler = scheduler_of("pbt", {"train.lr": domain, "loss.l1": [0.0, 1.0]}, "loss", "min", 3)
    assert isinstance(scheduler, PopulationBasedTraining)
    better = SimpleNamespace(
        config={"folder": "f", "trial": {"number": 3, "point": {"train.lr": domain.high, "loss.l1": 1.0}}}
    )
    for _ in range(100):
        better.config, _ = scheduler._get_new_config(None, better)
        value = better.config["trial"]["point"]["train.lr"]
        assert domain.low <= value <= domain.high and isinstance(value, int if whole else float)
    assert better.config["folder"] == "f" and better.config["trial"]["number"] == 3


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


def test_a_wrapped_searcher_that_has_no_more(tmp_path: Path) -> None:
    class Empty(Searcher):
        def suggest(self, trial_id: str) -> str:
            return str(Searcher.FINISHED)

    assert Valid(Empty(), SPACE, tmp_path, reason).suggest("a") == Searcher.FINISHED
