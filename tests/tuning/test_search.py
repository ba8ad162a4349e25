"""Searchers and schedulers: only points that are configurations, each once, and rungs that fit the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from tuning.search import Valid, budgets, check_mutable, optuna
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
