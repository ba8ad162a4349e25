"""Fronts: which rows form one, the numbers at equal PSNR against ones made by hand, and the files of the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cluster.cli.main import main
from pipelines.comparison import fronts, intervals
from pipelines.comparison.figures import front as figure
from pipelines.comparison.figures.style import Style
from pipelines.comparison.rows import Row, RunsError, read_rows
from pipelines.recipes import recipe
from pipelines.runs.results import Results
from tests.helpers.finished_runs import write_run
from tests.helpers.scored_images import scored_results


def written(folder: Path, name: str, results: Results, **changes: Any) -> Path:
    """A run; `changes` are dotted keys with `__` for the dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    where = folder / "-".join([name, *map(str, changes.values())])
    return write_run(where, recipe(name).replace(changes), results)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """L1; D2SM at weights 400, 1, 30, of which 30 has two seeds; perceptual at one weight."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        written(folder, "ffdnet_l1_cpu", scored_results(0, psnr=28.0)),
        written(folder, "ffdnet_l1_cpu", scored_results(1, psnr=28.1), train__seed=1),
        written(folder, "ffdnet_d2sm_cpu", scored_results(2, psnr=27.6, right=0.75), loss__weight=400.0),
        written(folder, "ffdnet_d2sm_cpu", scored_results(3, psnr=27.98, right=0.71), loss__weight=1.0),
        written(folder, "ffdnet_d2sm_cpu", scored_results(4, psnr=27.9, right=0.73), loss__weight=30.0),
        written(folder, "ffdnet_d2sm_cpu", scored_results(5, psnr=28.0, right=0.72), loss__weight=30.0, train__seed=1),
        written(folder, "ffdnet_perceptual_cpu", scored_results(6, psnr=27.7, right=0.69), loss__perceptual=0.01),
    ]


@pytest.fixture(scope="module")
def rows(folders: list[Path]) -> list[Row]:
    return read_rows(folders)


def test_rows_of_one_objective_are_a_front_in_the_order_of_their_weights(rows: list[Row]) -> None:
    d2sm, perceptual = fronts.of(rows)
    assert (d2sm.name, perceptual.name) == ("D2SM", "perceptual")
    assert [d2sm.weight(row) for row in d2sm.rows] == ["1", "30", "400"]
    assert d2sm.l1 is perceptual.l1 is rows[0] and fronts.left_out(rows) == {}
    assert [d2sm.weight(row) for row in d2sm.points("25")] == ["1", "30", "400"]
    assert fronts.are_there(rows) and not fronts.are_there(rows[:1]) and not fronts.are_there(rows[1:])
    assert fronts.of(rows[1:]) == [] and [len(out) for out in fronts.left_out(rows[1:]).values()] == [4]


def test_other_settings_are_other_fronts_and_need_their_own_l1(tmp_path: Path) -> None:
    scored = scored_results(images=3)
    l1, d2sm = "ffdnet_l1_cpu", "ffdnet_d2sm_cpu"
    found = read_rows(
        [
            written(tmp_path, l1, scored),
            written(tmp_path, l1, scored, data__crop_size=64, data__flip=False),
            written(tmp_path, d2sm, scored, loss__weight=1.0),
            written(tmp_path, d2sm, scored, loss__weight=2.0, loss__kernel="exp"),
            written(tmp_path, d2sm, scored, loss__weight=3.0, data__crop_size=64, data__flip=False),
            written(tmp_path, d2sm, scored, loss__weight=4.0, loss__perceptual=0.5),
            written(tmp_path, d2sm, scored, loss__weight=4.0, train__lr=0.25),
        ]
    )
    names = [(front.name, [front.weight(row) for row in front.rows]) for front in fronts.of(found)]
    assert [name.replace("crop_size=96 ", "").replace(" crop_size=96", "") for name, _ in names] == [
        "D2SM", "D2SM kernel=exp", "D2SM crop_size=64 flip=False", "D2SM + perceptual"
    ]  # fmt: skip
    assert [weights for _, weights in names] == [["1"], ["2"], ["3"], ["4 / 0.5"]]
    assert [front.l1 is found[0] for front in fronts.of(found)] == [True, True, False, True]
    assert list(fronts.left_out(found).values()) == [[found[6].label]] and "train.lr=0.25" in found[6].label
    assert (
        f"On no front, since no row is L1 alone with their other settings: {found[6].label}" in fronts.notes(found)[1]
    )


def test_why_a_row_of_l1_alone_is_on_no_front_is_said(tmp_path: Path) -> None:
    """A key that L1 alone does not use makes another row of it; so does a setting of which there is nothing else."""
    scored, l1 = scored_results(images=3), "ffdnet_l1_cpu"
    found = read_rows(
        [
            written(tmp_path, l1, scored),
            written(tmp_path, l1, scored, loss__queue_size=64),
            written(tmp_path, l1, scored, train__lr=0.25),
            written(tmp_path, "ffdnet_d2sm_cpu", scored, loss__weight=1.0),
        ]
    )
    assert [front.l1 is found[0] for front in fronts.of(found)] == [True]
    said = [note for note in fronts.notes(found) if note.startswith("On no front")]
    assert said == [
        f"On no front, since another row is L1 alone with their settings: {found[1].label}.",
        f"On no front, since no row has a further objective beside them: {found[2].label}.",
    ]


def test_rows_at_gradient_ratios_are_a_front_of_their_own(tmp_path: Path) -> None:
    scored, d2sm = scored_results(images=3), "ffdnet_d2sm_cpu"
    changes: list[dict[str, Any]] = [
        {"loss__gradient_ratio": 10.0},
        {"loss__weight": 5.0},
        {"loss__gradient_ratio": 2.0},
    ]
    found = read_rows(
        [written(tmp_path, "ffdnet_l1_cpu", scored), *(written(tmp_path, d2sm, scored, **c) for c in changes)]
    )
    by_ratio, by_weight = fronts.of(found)
    assert (by_ratio.name, by_weight.name) == ("D2SM by gradient ratio", "D2SM")
    assert [by_ratio.weight(row) for row in by_ratio.rows] == ["ratio 2", "ratio 10"]
    assert [by_weight.weight(row) for row in by_weight.rows] == ["5"]


@pytest.mark.parametrize("drop", [0.02, 0.05, 0.1, 0.25, 0.39])
def test_at_equal_psnr_a_front_is_a_line_between_its_neighbours(rows: list[Row], drop: float) -> None:
    d2sm, _ = fronts.of(rows)
    at = d2sm.at("25", drop)
    assert at is not None and at["psnr.sigma25"][0] == pytest.approx(-drop, abs=1e-9)
    psnr = [0.0, *(row.difference(rows[0], "psnr.sigma25")[0] for row in d2sm.rows)]
    miou = [np.zeros(1 + intervals.DRAWS), *(row.difference(rows[0], "miou.sigma25") for row in d2sm.rows)]
    order = np.argsort(psnr)
    for draw in (0, 1, 777, 2000):  # all photographs, and three of the draws
        expected = np.interp(-drop, np.array(psnr)[order], np.array([values[draw] for values in miou])[order])
        assert at["miou.sigma25"][draw] == pytest.approx(expected, abs=1e-12)


def test_a_front_follows_the_weights_where_a_row_has_more_psnr_than_l1(tmp_path: Path) -> None:
    """Below L1 the front comes from weight 1, which gains PSNR, not from L1; so does the line of the figure."""
    found = read_rows(
        [
            written(tmp_path, "ffdnet_l1_cpu", scored_results(0, psnr=30.0, right=0.5)),
            written(tmp_path, "ffdnet_d2sm_cpu", scored_results(0, psnr=30.05, right=0.55), loss__weight=1.0),
            written(tmp_path, "ffdnet_d2sm_cpu", scored_results(0, psnr=29.9, right=0.6), loss__weight=10.0),
        ]
    )
    (front,) = fronts.of(found)
    weak, strong = ([front.difference(row, f"{name}.sigma25") for name in ("psnr", "miou")] for row in front.rows)
    assert weak[0] is not None and weak[1] is not None and strong[0] is not None and strong[1] is not None
    for drop in (0.01, 0.05):
        at = front.at("25", drop)
        assert at is not None and at["psnr.sigma25"][0] == pytest.approx(-drop, abs=1e-9)
        share = (drop + weak[0][0]) / (weak[0][0] - strong[0][0])
        assert at["miou.sigma25"] == pytest.approx((1 - share) * weak[1] + share * strong[1], abs=1e-9)
    axes = Figure().subplots()
    figure._draw_front(axes, front, "miou", "25", Style("#000000", "o"), (0, 9))
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert list(line.get_xdata()) == pytest.approx([row.mean("psnr.sigma25") for row in found])


def test_a_front_that_falls_below_a_psnr_twice_counts_from_the_stronger_weight(tmp_path: Path) -> None:
    psnr = {1.0: 29.95, 10.0: 29.99, 100.0: 29.9}
    rows = [written(tmp_path, "ffdnet_l1_cpu", scored_results(0, psnr=30.0, right=0.5))]
    for weight, value in psnr.items():
        scored = scored_results(0, psnr=value, right=0.5 + 0.1 * np.log10(weight))
        rows.append(written(tmp_path, "ffdnet_d2sm_cpu", scored, loss__weight=weight))
    (front,) = fronts.of(read_rows(rows))
    middle, last = (front.difference(row, "miou.sigma25") for row in front.rows[1:])
    above, below = (front.rows[at].gain(front.l1, "psnr.sigma25") for at in (1, 2))
    at = front.at("25", 0.02)
    assert at is not None and middle is not None and last is not None and above is not None and below is not None
    assert above[0] > -0.02 > below[0]
    share = (0.02 + above[0]) / (above[0] - below[0])
    assert at["miou.sigma25"] == pytest.approx(middle + share * (last - middle), abs=1e-9)


def test_beyond_its_end_a_front_has_no_number(rows: list[Row]) -> None:
    d2sm, perceptual = fronts.of(rows)
    assert d2sm.at("25", 0.5) is None and perceptual.at("25", 0.31) is None
    assert fronts.compared(d2sm, perceptual, "25", 0.35) is None
    found, one, other = (fronts.compared(d2sm, perceptual, "25", 0.1), d2sm.at("25", 0.1), perceptual.at("25", 0.1))
    assert found is not None and one is not None and other is not None
    assert found["miou.sigma25"] == pytest.approx(one["miou.sigma25"] - other["miou.sigma25"], abs=1e-15)


def test_the_document_and_the_tree_hold_the_same_numbers(rows: list[Row]) -> None:
    text, tree = fronts.document(rows), json.loads(json.dumps(fronts.tree(rows), allow_nan=False))
    assert text.startswith("# Fronts") and "## Sigma 25" in text and "paired bootstrap over the 30 photographs" in text
    d2sm, perceptual = tree["levels"]["25"]["fronts"]
    assert (d2sm["objective"], perceptual["objective"]) == ("D2SM", "perceptual")
    assert [point["weights"] for point in d2sm["points"]] == [{"d2sm": 1.0}, {"d2sm": 30.0}, {"d2sm": 400.0}]
    assert d2sm["points"][1]["seeds"] == [0, 1] and d2sm["points"][0]["seeds"] == [0]
    gain = rows[3].gain(rows[0], "miou.sigma25")
    miou = d2sm["points"][1]["difference"]["miou"]
    assert rows[3].config.loss.weight == 30 and gain is not None and miou["mean"] == pytest.approx(gain[0])
    low, high = miou["interval"]
    assert f"| {miou['mean']:+.4f}* [{low:+.4f}, {high:+.4f}] |" in text and low > 0
    assert d2sm["at"]["0.5"] is None and d2sm["at"]["0.1"]["ssim"]["mean"] == pytest.approx(0, abs=1e-9)
    drops = [(one["objective"], one["over"], one["drop"]) for one in tree["levels"]["25"]["compared"]]
    assert drops == [("D2SM", "perceptual", drop) for drop in (0.01, 0.02, 0.05, 0.1, 0.25)]
    assert fronts.document(rows, heading="##").startswith("## Fronts") and "No front" not in text
    assert fronts.document(rows[:1]).startswith("There is no front") and fronts.tree(rows[:1])["levels"] == {}


def test_results_without_photographs_have_differences_without_intervals(tmp_path: Path) -> None:
    found = read_rows(
        [
            written(tmp_path, "ffdnet_l1_cpu", replace(scored_results(0), rows=())),
            written(tmp_path, "ffdnet_d2sm_cpu", scored_results(1, psnr=27.8, right=0.8)),
        ]
    )
    (d2sm,) = fronts.of(found)
    gain = found[1].gain(found[0], "miou.sigma25")
    at = d2sm.at("25", 0.1)
    assert gain is not None and at is not None and len(at["miou.sigma25"]) == 1
    assert f"| {gain[0]:+.4f} |" in fronts.document(found)
    assert fronts.tree(found)["levels"]["25"]["fronts"][0]["points"][0]["difference"]["miou"]["interval"] is None
    assert figure.draw(found, tmp_path / "figures")[0].exists()


def test_the_verb_draws_each_level_and_writes_the_numbers(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", "--trust", *map(str, folders), "--only", "front", "--out", str(tmp_path)]) == 0
    names = [f"front-sigma{level}.{kind}" for level in (25, 50) for kind in ("png", "svg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "front.md", "front.json"])
    printed = capsys.readouterr().out
    assert all(str(tmp_path / name) in printed for name in (*names, "front.md"))
    pixels = np.asarray(Image.open(tmp_path / names[0]).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    svg = (tmp_path / names[1]).read_text()
    for shown in ("What each objective trades PSNR for, sigma 25", "L1 alone", "D2SM", "perceptual",
                  "PSNR, dB", "MIoU by espnet-camvid"):  # fmt: skip
        assert f"<!-- {shown} -->" in svg  # as matplotlib marks text that it draws as paths
    assert (tmp_path / "front.md").read_text() == fronts.document(read_rows(folders, trust=True))


def test_nothing_to_draw_is_one_line(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", *map(str, folders[2:]), "--only", "front", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "no front among these runs: give runs of L1 alone" in said and "\n" not in said
    with pytest.raises(RunsError, match="no front"):
        figure.draw(read_rows(folders[:2]), tmp_path)
