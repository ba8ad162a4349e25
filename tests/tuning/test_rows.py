"""A sweep as rows: which trial is best, which are on the front, and what the tables and the picture show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuning.picture import draw
from tuning.rows import Row, best, front, load, mode, ranked, save, table, text
from tuning.space import Range, Space

SPACE: Space = {"loss.queue_size": [64, 256], "loss.weight": Range(0.1, 10.0, log=True)}


def row(number: int, psnr: float, miou: float = math.nan, **changes: object) -> Row:
    values = {"psnr.sigma25": psnr, "miou.sigma25": miou}
    metrics = {name: value for name, value in values.items() if not math.isnan(value)}
    point = {"loss.queue_size": 64, "loss.weight": 1.0 + number}
    made = {"number": number, "point": point, "state": "finished", "share": 1.0, "seconds": 2.0, "metrics": metrics}
    return Row(**{**made, **changes})  # type: ignore[arg-type]


ROWS = [
    row(0, 24.0, 0.50),
    row(1, 25.0, 0.40),
    row(2, 26.0, 0.30, state="stopped", share=0.5),
    row(3, math.nan, state="failed", share=0.0, why="step 3: the loss is not finite"),
    row(4, 23.0, 0.45),
]


@pytest.mark.parametrize(
    ("metric", "way"),
    [("psnr.sigma25", "max"), ("miou.sigma50", "max"), ("loss", "min"), ("loss.l1", "min"), ("gradient_norm", "min")],
)
def test_which_way_is_better(metric: str, way: str) -> None:
    assert mode(metric) == way


def test_the_best_had_its_whole_budget() -> None:
    top = best(ROWS, "psnr.sigma25")
    assert top is not None and top.number == 1
    assert [r.number for r in ranked(ROWS, "psnr.sigma25")] == [1, 0, 4, 2, 3]
    assert best(ROWS[2:4], "psnr.sigma25") is None
    low = [row(number, 0, metrics={"loss": value}) for number, value in enumerate([0.3, 0.1, 0.2])]
    assert [r.number for r in ranked(low, "loss")] == [1, 2, 0]


def test_the_front() -> None:
    assert [r.number for r in front(ROWS, ["psnr.sigma25", "miou.sigma25"])] == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nobody_on_the_front_is_beaten_and_everybody_else_is(values: list[tuple[int, int]]) -> None:
    rows = [row(number, float(a), float(b)) for number, (a, b) in enumerate(values)]
    on = {r.number for r in front(rows, ["psnr.sigma25", "miou.sigma25"])}
    for number, (a, b) in enumerate(values):
        beaten = any(c >= a and d >= b and (c, d) != (a, b) for c, d in values)
        assert (number in on) != beaten


def test_the_table() -> None:
    lines = table(ROWS, list(SPACE), ["psnr.sigma25"])
    assert lines[0] == ["trial", "state", "loss.queue_size", "loss.weight", "budget", "psnr.sigma25"]
    assert lines[2] == ["001", "finished", "64", "2", "100%", "25 *"]
    assert lines[4] == ["003", "failed", "64", "4", "0%", ""]
    shown = text(ROWS, list(SPACE), ["psnr.sigma25", "miou.sigma25"])
    assert shown.count("*") == 2 and shown.endswith("003 failed: step 3: the loss is not finite")


def test_rows_are_read_back(tmp_path: Path) -> None:
    assert load(tmp_path) == []
    save(ROWS, tmp_path)
    assert load(tmp_path) == ROWS


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[3:4], []])
@pytest.mark.parametrize("metrics", [["psnr.sigma25"], ["psnr.sigma25", "miou.sigma25"]])
def test_the_picture(rows: list[Row], metrics: list[str], tmp_path: Path) -> None:
    with Image.open(draw(rows, SPACE, metrics, tmp_path / "search.png")) as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors() or []) > 5
