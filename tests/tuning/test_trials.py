"""The trials of a sweep: which is best, which are on the Pareto front, and what table and figure show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuning.figure import draw
from tuning.space import Range, Space
from tuning.trials import TrialSummary, best, cells, front, load, mode, ranked, save, text

SPACE: Space = {"loss.queue_size": [64, 256], "loss.weight": Range(0.1, 10.0, log=True)}


def trial(number: int, psnr: float, miou: float = math.nan, **changes: object) -> TrialSummary:
    values = {"psnr.sigma25": psnr, "miou.sigma25": miou}
    metrics = {name: value for name, value in values.items() if not math.isnan(value)}
    point = {"loss.queue_size": 64, "loss.weight": 1.0 + number}
    made = {"number": number, "point": point, "state": "finished", "share": 1.0, "seconds": 2.0, "metrics": metrics}
    return TrialSummary(**{**made, **changes})  # type: ignore[arg-type]


TRIALS = [
    trial(0, 24.0, 0.50),
    trial(1, 25.0, 0.40),
    trial(2, 26.0, 0.30, state="stopped", share=0.5),
    trial(3, math.nan, state="failed", share=0.0, why="step 3: the loss is not finite"),
    trial(4, 23.0, 0.45),
]


@pytest.mark.parametrize(
    ("metric", "way"),
    [("psnr.sigma25", "max"), ("miou.sigma50", "max"), ("loss", "min"), ("loss.l1", "min"), ("gradient_norm", "min")],
)
def test_which_way_is_better(metric: str, way: str) -> None:
    assert mode(metric) == way


def test_the_best_had_its_whole_budget() -> None:
    top = best(TRIALS, "psnr.sigma25")
    assert top is not None and top.number == 1
    assert [each.number for each in ranked(TRIALS, "psnr.sigma25")] == [1, 0, 4, 2, 3]
    assert best(TRIALS[2:4], "psnr.sigma25") is None
    low = [trial(number, 0, metrics={"loss": value}) for number, value in enumerate([0.3, 0.1, 0.2])]
    assert [each.number for each in ranked(low, "loss")] == [1, 2, 0]


def test_the_front() -> None:
    assert [each.number for each in front(TRIALS, ["psnr.sigma25", "miou.sigma25"])] == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nobody_on_the_front_is_beaten_and_everybody_else_is(values: list[tuple[int, int]]) -> None:
    trials = [trial(number, float(a), float(b)) for number, (a, b) in enumerate(values)]
    on = {each.number for each in front(trials, ["psnr.sigma25", "miou.sigma25"])}
    for number, (a, b) in enumerate(values):
        beaten = any(c >= a and d >= b and (c, d) != (a, b) for c, d in values)
        assert (number in on) != beaten


def test_the_table() -> None:
    lines = cells(TRIALS, list(SPACE), ["psnr.sigma25"])
    assert lines[0] == ["trial", "state", "loss.queue_size", "loss.weight", "budget", "psnr.sigma25"]
    assert lines[2] == ["001", "finished", "64", "2", "100%", "25 *"]
    assert lines[4] == ["003", "failed", "64", "4", "0%", ""]
    shown = text(TRIALS, list(SPACE), ["psnr.sigma25", "miou.sigma25"])
    assert shown.count("*") == 2 and shown.endswith("003 failed: step 3: the loss is not finite")


def test_trials_are_read_back(tmp_path: Path) -> None:
    assert load(tmp_path) == []
    save(TRIALS, tmp_path)
    assert load(tmp_path) == TRIALS


@pytest.mark.parametrize("trials", [TRIALS, TRIALS[:1], TRIALS[3:4], []])
@pytest.mark.parametrize("metrics", [["psnr.sigma25"], ["psnr.sigma25", "miou.sigma25"]])
def test_the_figure(trials: list[TrialSummary], metrics: list[str], tmp_path: Path) -> None:
    with Image.open(draw(trials, SPACE, metrics, tmp_path / "search.png")) as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors() or []) > 5
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    red = int((pixels == (0xD6, 0x27, 0x28)).all(1).sum())  # the front, which only two metrics have
    assert (red > 20) == (len(metrics) > 1 and any(each.state == "finished" for each in trials))
