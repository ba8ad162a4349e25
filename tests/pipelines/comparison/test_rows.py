"""Finished runs, gathered into rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.comparison.paper import published
from pipelines.comparison.rows import RunsError, common_changes, labels, read_rows, read_run
from pipelines.config import Config
from pipelines.recipes import recipe, recipes
from pipelines.runs.checkpoint import CONFIG
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import RESULTS, Judge, Results
from tests.helpers.finished_runs import results, write_run


def test_seeds_of_one_setting_are_one_row(tmp_path: Path) -> None:
    l1, d2sm = recipe("ffdnet_l1_cpu"), recipe("ffdnet_d2sm_cpu")
    folders = [
        write_run(tmp_path / "a", l1.replace({"train.seed": 1}), results(27.0)),
        write_run(tmp_path / "b", d2sm, results(28.0)),
        write_run(tmp_path / "c", l1.replace({"train.seed": 0, "train.num_workers": 1}), results(26.0, None)),
        write_run(tmp_path / "d", d2sm.replace({"loss.queue_size": 64}), results(29.0)),
    ]
    first, second, third = read_rows(folders)
    assert [run.seed for run in first.runs] == [0, 1]
    assert first.mean("psnr.sigma25") == 26.5
    assert first.deviation("psnr.sigma25") == pytest.approx(0.5**0.5)
    assert first.mean("miou.sigma25") == 0.6 and first.deviation("miou.sigma25") is None  # measured in one of them
    assert first.mean("psnr.sigma10") is None
    assert first.label.startswith("ffdnet_l1_cpu model.width=4") and "seed" not in first.label
    assert "loss.queue_size" not in second.label and third.label.endswith("loss.queue_size=64")
    assert first.runs[0].commit == "c0ffee+"
    assert second.gain(first, "psnr.sigma25") == (2.0, None)  # seed 0 alone has both
    assert first.gain(first, "ssim.sigma25") == (0.0, 0.0) and first.gain(first, "psnr.sigma10") is None
    assert first.published["psnr.sigma35"] == 34.074


def test_runs_that_are_not_finished_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="nothing: .*d2sm train"):
        read_run(tmp_path / "nothing")
    with pytest.raises(RunsError, match="half: .*step 8 of 8"):
        read_run(write_run(tmp_path / "half", recipe("ffdnet_l1_cpu"), results(), final=False))
    folder = write_run(tmp_path / "late", recipe("ffdnet_l1_cpu"))
    with pytest.raises(RunsError, match="late: .*`d2sm evaluate .*late`"):
        read_run(folder)
    results().save(folder / RESULTS)
    assert read_run(folder).results == results()
    RunFolder.at(folder).write_info(evaluated=4)  # before the training went on
    with pytest.raises(RunsError, match="late: .*`d2sm evaluate"):
        read_run(folder)


def test_how_a_run_was_measured_is_said_by_its_results_or_else_by_its_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", recipe("ffdnet_l1_cpu"), results())
    measured = read_run(folder).config.replace({"evaluate.lpips": "alexnet", "train.lr": 0.5})
    measured.save(folder / CONFIG)  # results of earlier versions do not say it
    config = read_run(folder).config
    assert config.evaluate.lpips == "alexnet" and config.train.lr != 0.5  # it was trained before
    for key, value in (("evaluate.lpips", "none of ours"), ("evaluate.later", 1)):
        replace(results(), measured_with={key: value}).save(folder / RESULTS)
        with pytest.raises(RunsError, match=rf"^{folder / RESULTS}: measured with {key}.*`d2sm evaluate") as error:
            read_run(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other, message",
    [
        (results(data="xyz"), "b: .*a is .data: xyz, there abc"),
        (replace(results(), segmenter="espnet-scenes"), "segmenter: espnet-scenes"),
        (
            replace(results(), **{kind: {"25": getattr(results(), kind)["25"]} for kind in ("noisy", "restored")}),
            "b: .*a is .levels: 25, there 25, 35, 50.; .*evaluate.levels",
        ),
        (replace(results(), images=2, data="xyz"), "b: .*a is .images: 2, there 3.; .*evaluate.limit"),
        (
            replace(results(), judges={"b": Judge("b", "w")}),
            "b: .*further segmenters: b w, there none.; .*evaluate.segmenters_weights",
        ),
        (replace(results(), weights="def"), "b: .*weights of the segmenter: def, there abc"),
        (replace(results(), lpips_weights="def"), "b: .*weights of LPIPS: def, there abc.*evaluate.lpips_weights"),
        (replace(results(), weights=""), "b: .*seed 0 as .*a;"),  # of an earlier version, which did not name them
        (results(), "b: .*seed 0 as .*a;"),
    ],
)
def test_runs_that_cannot_stand_in_one_table_are_refused(tmp_path: Path, other: Results, message: str) -> None:
    folders = [write_run(tmp_path / name, recipe("ffdnet_l1_cpu"), found) for name, found in
               (("a", replace(results(), weights="abc", lpips_weights="abc")), ("b", other))]  # fmt: skip
    with pytest.raises(RunsError, match=message):
        read_rows(folders)


def test_labels_leave_out_what_all_settings_change() -> None:
    l1, d2sm = (recipe(f"ffdnet_{name}_cpu").replace({"train.lr": 0.5}) for name in ("l1", "d2sm"))
    settings = [l1, d2sm, d2sm.replace({"loss.weight": 2.5, "train.num_workers": 1})]
    assert common_changes(settings) == {"train.lr": 0.5}
    assert labels(settings) == ["ffdnet_l1_cpu", "ffdnet_d2sm_cpu", "ffdnet_d2sm_cpu loss.weight=2.5"]
    assert common_changes([l1, l1.replace({"train.lr": 0.25})]) == {}


def test_the_papers_rows_and_the_recipes_name_each_other() -> None:
    """Every row of the paper has its recipe, and every recipe against noise, but the demo, a row."""
    named = {name for name, config in recipes().items() if published(config)}
    assert {name for name in set(recipes()) - named if recipe(name).degradation.is_noise} == {"demo"}
    assert published(recipe("ffdnet_d2sm_cpu").replace({"degrade.chain": "jpeg:10"})) == {}
    assert published(recipe("ffdnet_jsd")) == {"psnr.sigma25": 36.31, "ssim.sigma25": 0.935, "miou.sigma25": 0.640}
    assert published(Config()) == {}


@pytest.mark.parametrize(
    ("name", "changes", "stays"),
    [
        ("ffdnet_l1", {"model.name": "sadnet"}, False),
        ("ffdnet_l1", {"loss.ssim": 0.3}, False),
        ("ffdnet_d2sm_cpu", {"loss.weight": 0.0}, False),
        ("ffdnet_d2sm", {"loss.divergence": "jsd"}, False),
        ("ffdnet_d2sm_internal", {"loss.patch_size": None}, False),
        ("ffdnet_d2sm_cpu", {"loss.weight": 3.0, "model.width": 8, "train.lr": 0.5}, True),
    ],
)
def test_another_backbone_or_objective_is_no_row_of_the_paper(
    name: str, changes: dict[str, object], stays: bool
) -> None:
    assert bool(published(recipe(name).replace(changes))) == stays and published(recipe(name))
