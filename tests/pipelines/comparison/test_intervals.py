"""Intervals: the vectorised bootstrap against one that goes draw by draw and photograph by photograph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from d2sm import metrics
from pipelines.comparison import intervals, render
from pipelines.comparison.report import tables
from pipelines.comparison.report.page import html
from pipelines.comparison.rows import Row, read_rows
from pipelines.recipes import recipe
from pipelines.runs.results import ImageScore, Results, Score
from tests.helpers.finished_runs import write_run
from tests.helpers.report_page import WRITTEN, ParsedPage
from tests.helpers.scored_images import of_an_earlier_version, scored_results

MEASURED = ("psnr", "ssim", "miou", "miou-far", "lpips")


def drawn_photographs(photographs: int) -> list[list[int]]:
    """All photographs, then those of each draw."""
    random = np.random.default_rng(0)
    draws = [random.integers(0, photographs, photographs).tolist() for _ in range(intervals.DRAWS)]
    return [list(range(photographs)), *draws]


def by_hand(scores: list[ImageScore], metric: str) -> float:
    """A metric of a list of photographs."""
    if not metric.startswith("miou"):
        return sum(getattr(score, metric) for score in scores) / len(scores)
    ious = []
    for of_class in zip(*(score.counts[metric] for score in scores), strict=True):
        right, labelled, predicted = map(sum, zip(*of_class, strict=True))
        if labelled:
            ious.append(right / (labelled + predicted - right))
    return sum(ious) / len(ious)


def all_measured(seed: int, **changes: float) -> Results:
    quality = {"right": 0.7, "psnr": 28.0} | changes
    return scored_results(seed, judges={"far": quality["right"] - 0.2}, lpips=0.1, **quality)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """L1 of seeds 0, 1 and 2, D2SM of seeds 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("runs")
    l1, d2sm = recipe("ffdnet_l1_cpu"), recipe("ffdnet_d2sm_cpu")
    return read_rows(
        [write_run(folder / f"l1-{seed}", l1.replace({"train.seed": seed}), all_measured(seed)) for seed in (0, 1, 2)]
        + [
            write_run(
                folder / f"d2sm-{seed}", d2sm.replace({"train.seed": seed}),
                all_measured(seed + 10, right=0.72, psnr=27.97),
            )
            for seed in (1, 2, 3)
        ]
    )  # fmt: skip


def test_of_all_photographs_it_is_the_number_of_the_results(rows: list[Row]) -> None:
    for run in (run for row in rows for run in row.runs):
        assert list(run.draws) == run.columns and len(run.columns) == 2 * len(MEASURED)
        for name in run.columns:
            assert run.draws[name].shape == (1 + intervals.DRAWS,)
            assert run.draws[name][0] == pytest.approx(run.metrics[name], rel=1e-14)


@pytest.mark.parametrize("metric", MEASURED)
def test_an_interval_is_that_of_going_photograph_by_photograph(rows: list[Row], metric: str) -> None:
    l1, d2sm = rows
    draws = drawn_photographs(30)
    differences = []
    for photographs in draws:
        of_seeds = []
        for seed in (1, 2):  # those of both
            ours, theirs = (next(run for run in row.runs if run.seed == seed).results.rows for row in (d2sm, l1))
            of_seeds.append(
                by_hand([ours[i].restored["50"] for i in photographs], metric)
                - by_hand([theirs[i].restored["50"] for i in photographs], metric)
            )
        differences.append(sum(of_seeds) / 2)
    low, high = np.percentile(differences[1:], [2.5, 97.5])
    found = d2sm.interval(l1, f"{metric}.sigma50")
    gain = d2sm.gain(l1, f"{metric}.sigma50")
    assert found is not None and gain is not None
    assert (found.value, found.low, found.high) == pytest.approx((differences[0], low, high), rel=1e-9, abs=1e-12)
    assert found.value == pytest.approx(gain[0], rel=1e-9, abs=1e-12) and found.low <= found.value <= found.high
    assert d2sm.difference(l1, f"{metric}.sigma50") == pytest.approx(differences, rel=1e-9, abs=1e-12)


def test_miou_of_counts_is_that_of_the_confusion_matrix() -> None:
    confusions = torch.from_numpy(np.random.default_rng(3).integers(0, 9, (7, 5, 5)))
    confusions[:, 2] = 0  # a class without labels
    counts = torch.stack([confusions.diagonal(dim1=1, dim2=2), confusions.sum(2), confusions.sum(1)], -1)
    found = intervals.miou(counts.numpy())
    assert found[0] == pytest.approx(metrics.miou(confusions.sum(0)), rel=1e-15)
    for values, photographs in zip(found[1:], drawn_photographs(7)[1:], strict=True):
        assert values == pytest.approx(metrics.miou(confusions[photographs].sum(0)), rel=1e-14)


def test_pairing_and_seeds_narrow_the_interval(rows: list[Row]) -> None:
    """The photographs differ by 2 dB; of the difference of two networks this cancels."""
    l1, d2sm = rows
    paired = d2sm.interval(l1, "psnr.sigma25")
    alone = intervals.interval(d2sm.runs[0].draws["psnr.sigma25"])
    assert paired is not None and alone is not None
    assert paired.high - paired.low < 0.02 < 1 < alone.high - alone.low
    assert paired.excludes_zero and paired.value == pytest.approx(-0.03, abs=0.01)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 400 evaluations of 60 drawn photographs, 95 % within 3.5 standard deviations (1.1 points each)."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = intervals.interval(intervals.mean(random.normal(0.3, 1, 60)))
        assert found is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.91 < hits / 400 < 0.99


def two_rows(folder: Path, first: Results, second: Results) -> list[Row]:
    return read_rows(
        [
            write_run(folder / name, recipe(f"ffdnet_{name}_cpu"), results)
            for name, results in (("l1", first), ("d2sm", second))
        ]
    )


def test_a_table_shows_intervals_and_says_how_they_were_made(rows: list[Row]) -> None:
    l1, d2sm = rows
    gain, interval = next(
        (a, b) for a, b in zip(render.cells(rows), render.cells(rows)[1:]) if b[0] == "  its 95 % interval"
    )
    assert gain[0] == "  gain over the first row" and gain[3].startswith("-0.0")
    found = d2sm.interval(l1, "psnr.sigma25")
    assert found is not None
    assert interval[3].split(" / ")[0] == f"[{found.low:+.3f}, {found.high:+.3f}]"
    assert len(interval[3].split(" / ")) == len(interval[4].split(" / ")) == 5
    for text in (render.text(rows), render.document(rows)):
        assert text.count("paired bootstrap over the 30 photographs (2000 draws") == 1 and "No 95" not in text
    tree = json.loads(json.dumps(render.tree(rows), allow_nan=False))
    assert (tree["intervals"]["level"], tree["intervals"]["draws"]) == (0.95, 2000) and "gain" not in tree["rows"][0]
    assert tree["intervals"]["notes"] == render.interval_notes(rows) and len(render.interval_notes(rows)) == 1
    assert render.interval_notes(rows[:1]) == []
    shown = tree["rows"][1]["gain"]["psnr.sigma25"]
    assert shown["interval"] == [found.low, found.high] and shown["mean"] == pytest.approx(found.value)


def test_the_report_shows_them_below_each_mean(rows: list[Row]) -> None:
    first, second = tables.table(rows).lines
    found = rows[1].interval(rows[0], "miou.sigma25")
    assert found is not None and first.gains == ()
    assert second.gains[2] == tables.Gain(f"{found.value:+.3f}", f"[{found.low:+.4f}, {found.high:+.4f}]")
    text = ParsedPage(html(rows, [], [], written=WRITTEN)).text
    assert f"D2SM gain over L1 {second.gains[0].mean} {second.gains[0].interval}" in text
    assert text.count("paired bootstrap over the 30 photographs") == 1


def test_what_was_not_stored_by_photograph_has_no_interval_and_is_said_once(tmp_path: Path) -> None:
    rows = two_rows(tmp_path, of_an_earlier_version(all_measured(0)), all_measured(1))
    assert rows[1].interval(rows[0], "miou.sigma25") is None and rows[1].interval(rows[0], "psnr.sigma25")
    text = render.text(rows)
    said = f"No 95 % interval for miou, miou-far: the results of {tmp_path / 'l1'} do not hold it by photograph"
    assert text.count(said) == 1 and f"`d2sm evaluate {tmp_path / 'l1'}`" in text
    interval = next(row for row in render.cells(rows) if row[0] == "  its 95 % interval")
    assert [part == "-" for part in interval[3].split(" / ")] == [False, False, True, True, False]
    bare = two_rows(tmp_path, *(replace(all_measured(seed), rows=()) for seed in (0, 1)))
    assert "its 95 % interval" not in render.text(bare) and "bootstrap" not in render.text(bare)
    assert "No 95 % interval for psnr, ssim, miou, miou-far, lpips: " in render.text(bare)
    assert f"{tmp_path / 'l1'} (and 1 more)" in render.text(bare)


def test_an_infinite_psnr_and_photographs_without_labels_have_none(tmp_path: Path) -> None:
    found = scored_results(0, images=4)
    first = found.rows[0]
    same = replace(first, restored={**first.restored, "25": replace(first.restored["25"], psnr=None)})
    infinite = replace(
        found,
        rows=(same, *found.rows[1:]),
        restored={**found.restored, "25": replace(found.restored["25"], psnr=None)},
    )
    rows = two_rows(tmp_path / "a", found, infinite)
    assert rows[1].interval(rows[0], "psnr.sigma25") is None and rows[1].gain(rows[0], "psnr.sigma25") is None
    assert rows[1].interval(rows[0], "psnr.sigma50")

    nothing = {"miou": ((0, 0, 5),) * 19}
    void = tuple(
        replace(row, restored={level: replace(one, counts=nothing) for level, one in row.restored.items()})
        for row in found.rows[1:]
    )
    rows = two_rows(tmp_path / "b", *[replace(found, rows=(first, *void))] * 2)
    assert rows[1].interval(rows[0], "miou.sigma25") is None
    assert "No 95 % interval for miou.sigma25, miou.sigma50: some draws of photographs hold no labels" in render.text(
        rows
    )

    one = [replace(found, images=1, rows=found.rows[:1])] * 2
    assert "There are no 95 % intervals: a single photograph was evaluated." in render.text(
        two_rows(tmp_path / "c", *one)
    )


def test_results_that_contradict_themselves_have_none() -> None:
    found = scored_results(0, images=3)
    first = found.rows[0]
    ragged = replace(first, restored={k: replace(v, counts={"miou": ((1, 1, 1),)}) for k, v in first.restored.items()})
    assert "miou.sigma25" not in intervals.of_results(replace(found, rows=(ragged, *found.rows[1:])))
    absent = replace(first, restored={"50": first.restored["50"]})
    assert list(intervals.of_results(replace(found, rows=(absent, *found.rows[1:])))) == [
        "psnr.sigma50", "ssim.sigma50", "miou.sigma50"
    ]  # fmt: skip
    assert intervals.of_results(replace(found, rows=found.rows[1:])) == {}
    assert intervals.of_results(replace(found, images=0, rows=(), restored={"25": Score(None, None, None, {})})) == {}
