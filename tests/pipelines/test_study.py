"""Studies: what a plan means, what is said against it, what is finished already, the file of results; a real one."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli.main import main
from pipelines import study
from pipelines.check import check_used
from pipelines.comparison import study_results
from pipelines.comparison.rows import FinishedRun, RunsError
from pipelines.comparison.study_results import RAW, START, TEXT, Compared
from pipelines.config import Config, ConfigError
from pipelines.runs.folder import RunFolder
from pipelines.training.initial import note
from tests.helpers.finished_runs import write_run
from tests.helpers.scored_images import scored_results
from tests.helpers.stores import new_store


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow sets the variable when a test tells it a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def plan(tmp_path: Path, **changes: Any) -> Path:
    """Two degradations, two networks, L1 and D2SM at two weights."""
    tree = {
        "recipe": "ffdnet_d2sm_cpu",
        "seeds": 2,
        "keys": {"data.root": str(tmp_path), "train.storage": str(tmp_path / "runs"), "model.depth": 3},
        "start": {"train.epochs": 3},
        "settings": {
            "degradation": {
                "noise50": {"noise.sigma": [0, 50], "evaluate.sigmas": [25, 50]},
                "jpeg": {"degrade.chain": "jpeg:10"},
            },
            "network": {"small": {"model.width": 4}, "large": {"model.width": 8}},
        },
        "objectives": {"L1": {"loss.weight": 0}, "D2SM": {"loss.weight": [3, 30]}},
    }
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return file


def read(file: Path, **changes: Any) -> study.Study:
    return study.read(file, name="s", changes=changes)


def test_a_plan_is_every_objective_in_every_setting_with_every_seed(tmp_path: Path) -> None:
    found = read(plan(tmp_path))
    assert found.settings == ["noise50 small", "noise50 large", "jpeg small", "jpeg large"]
    assert [one.objective for one in found.runs[:3]] == ["L1", "D2SM 3", "D2SM 30"]
    assert [one.config.train.seed for one in found.runs] == [0] * 12 + [1] * 12
    assert found.runs[0].title == "noise50 small: L1 seed 0"
    names = [one.config.train.name for one in found.runs]
    assert len(set(names)) == 24 and names[1] == "noise50-small-D2SM-3-seed0"
    assert [one.config.loss.terms.get("d2sm") for one in found.runs[:3]] == [None, 3, 30]
    assert {one.config.model.width for one in found.runs if "large" in one.setting} == {8}
    assert {RunFolder.of(one.config).path.parent for one in found.runs} == {tmp_path / "runs" / "s"}


def test_the_runs_of_a_setting_start_from_its_own_network(tmp_path: Path) -> None:
    found = read(plan(tmp_path))
    assert [one.config.train.epochs for one in found.starts.values()] == [3] * 4
    assert all(one.objective == START and "d2sm" not in one.config.loss.terms for one in found.starts.values())
    for one in found.runs:
        assert one.config.train.init == str(RunFolder.of(found.starts[one.setting].config).path)
    alone = read(plan(tmp_path, start=None))
    assert not alone.starts and {one.config.train.init for one in alone.runs} == {""}


def test_keys_of_the_command_line_change_all_runs(tmp_path: Path) -> None:
    found = read(plan(tmp_path), **{"train.lr": 0.5, "model.depth": 4})
    assert {(one.config.train.lr, one.config.model.depth) for one in (*found.runs, *found.starts.values())} == {
        (0.5, 4)
    }


@pytest.mark.parametrize(
    "word, place",
    [
        ("train.epochs=1", "in start"),
        ("model.width=16", "in settings: network: small"),
        ("loss.weight=1", "in objectives: L1"),
    ],
)
def test_a_key_of_the_command_line_that_the_plan_sets_for_some_runs_is_refused(
    tmp_path: Path, word: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(plan(tmp_path)), "--dry-run", word]) == 2
    said = capsys.readouterr().err
    assert word in said and place in said and len(said.splitlines()) == 1


def test_typed_keys_vouch_for_no_code_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"network": {"mine": {"model.name": "nowhere:network"}}}
    assert main(["study", str(plan(tmp_path, settings=settings)), "--dry-run", "model.name=ffdnet"]) == 2
    said = capsys.readouterr().err
    assert "in settings: network: mine" in said and len(said.splitlines()) == 1


def test_a_plan_may_start_from_weights_of_its_own(tmp_path: Path) -> None:
    """They are those of the common start, or of all runs; never a run of that name within the study's folder."""
    keys = {"data.root": str(tmp_path), "train.storage": str(tmp_path / "runs"), "model.depth": 3}
    write_run(tmp_path / "runs" / "first", small(tmp_path).runs[0].config)
    keys["train.init"] = "first"
    for start in ({"train.epochs": 3}, None):
        found = small(tmp_path, start=start, keys=keys)
        first = [*found.starts.values(), *found.runs][0]
        assert first.config.train.init == str(tmp_path / "runs" / "first")
        assert {one.config.train.init for one in found.runs} == {
            str(RunFolder.of(first.config).path) if start else str(tmp_path / "runs" / "first")
        }
    with pytest.raises(ConfigError, match=r"train\.init=second: no such file, folder, or run"):
        small(tmp_path, keys=keys | {"train.init": "second"})


def test_a_weight_may_be_written_without_a_point(tmp_path: Path) -> None:
    """YAML gives 1e-4 as text."""
    file = plan(tmp_path)
    file.write_text(file.read_text().replace("- 3\n", "- 1e-4\n"))
    assert "D2SM 0.0001" in {one.objective for one in read(file).runs if one.config.loss.weight == 1e-4}


def test_the_data_may_be_an_axis_of_any_place(tmp_path: Path) -> None:
    settings = {"network": {"small": {"model.width": 4}}, "data": {"a": {"data.root": "/a"}, "b": {"data.root": "/b"}}}
    found = read(plan(tmp_path, settings=settings, keys={}))
    assert {(one.setting, one.config.data.root) for one in found.runs} == {("small a", "/a"), ("small b", "/b")}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": {}}, "objective: "),
        ({"seeds": 0}, "seeds: "),
        ({"objectives": {}}, "objectives: "),
        ({"recipe": "ffdnet"}, "recipe 'ffdnet': no such recipe"),
        ({"objectives": {"L1": {"loss.wieght": 0}}}, "noise50 small: start: "),
        ({"objectives": {"L1": {"loss.weight": 0}, "D2SM": {"loss.queue_size": 1}}}, "D2SM: loss.queue_size=1"),
        ({"objectives": {"D2SM": {"loss.weight": [1, 2], "loss.l1": [1, 2]}}}, "D2SM: loss.weight and loss.l1"),
        ({"settings": {"a": {"x": {"train.lr": 1}}, "b": {"y": {"train.lr": 2}}}}, "train.lr is changed by two axes"),
        ({"settings": {"a": {"x/y": {}}}}, "x/y"),
        ({"settings": {"a": {}}}, "settings.a: "),
        ({"keys": {}}, "data.root: "),
        ({"objectives": {"L1": {"loss.weight": []}}}, "L1: loss.weight=[]"),
        ({"objectives": {"L1": {"loss.gradient_ratio": [None, 1]}}}, "L1: loss.gradient_ratio: None"),
        ({"objectives": {"L1": {"loss.weight": ["much"]}}}, "L1: loss.weight: 'much'"),
        ({"objectives": {"L1": {"loss.weight": [3, 3]}}}, "would both be the run noise50-small-L1-3-seed0"),
        ({"objectives": {"L1 3": {}, "L1": {"loss.weight": [3, 30]}}}, "would both be the run"),
        ({"objectives": {"start": {}}}, "objectives: start: "),
        ({"start": {"tracking.register_as": "m"}}, "start: tracking.register_as=m: a study registers no model"),
    ],
)
def test_a_wrong_plan_is_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(plan(tmp_path, **changes)), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_code_that_a_plan_names_is_not_imported_without_trust(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor that of a later setting."""
    settings = {"judge": {"none": {}, "mine": {"evaluate.segmenter": "nowhere:segmenter"}}}
    assert main(["study", str(plan(tmp_path, settings=settings)), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "evaluate.segmenter=nowhere:segmenter: " in said and "--trust" in said and len(said.splitlines()) == 1


def test_a_missing_plan_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def finish(found: study.Study, *, runs: int | None = None) -> None:
    """Write the starts and the first runs of a study as training and evaluation leave them."""
    for number, one in enumerate([*found.starts.values(), *found.runs][:runs]):
        folder = RunFolder.of(one.config).path
        better = 0.02 * one.objective.startswith("D2SM")
        write_run(folder, one.config, scored_results(number, right=0.6 + better, judges={"other": 0.5 + better}))
        RunFolder.at(folder).write_info(seconds=1800.0)


def small(tmp_path: Path, **changes: Any) -> study.Study:
    """A study of the network that `write_run` writes."""
    settings = {"degradation": {"noise": {"model.width": 4, "evaluate.sigmas": [25, 50]}}}
    return read(plan(tmp_path, settings=settings, **changes))


def test_what_is_left_is_said_with_the_time_of_the_finished_runs(tmp_path: Path) -> None:
    """12 runs of 100 steps and 16 crops; each finished one took half an hour."""
    found = small(tmp_path, seeds=4)
    steps = {one.title: 100 for one in (*found.starts.values(), *found.runs)}
    said = study.budget(found, steps, at_once=2)
    assert said.startswith("study s: 1 setting, 13 runs, 0 done; 1,300 steps of 20,800 crops left; how long ")
    finish(found, runs=5)
    said = study.budget(found, steps, at_once=2)
    assert "13 runs, 5 done; 800 steps of 12,800 crops left; about 2.0 hours, 2 at a time" in said


def test_a_changed_plan_is_refused_before_the_first_run(
    tmp_path: Path, scenes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {
        "data.root": str(scenes_root), "train.storage": str(tmp_path / "runs"), "model.depth": 3, "data.crop_size": 64,
        "evaluate.segmenter": None, "loss.features_weights": "random",
    }  # fmt: skip
    words = ["study", str(tmp_path / "plan.yaml"), "--name", "s", "--dry-run"]
    found = small(tmp_path, keys=keys)
    finish(found)
    small(tmp_path, keys=keys | {"train.lr": 0.125})
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "train.lr=0.125: the run noise-start was started with" in said and "choose another --name" in said
    small(tmp_path, keys=keys)
    assert main(words) == 0 and "7 runs, 7 done" in capsys.readouterr().out
    RunFolder.of(found.runs[0].config).write_info(fingerprint="0123456789abcdef")
    RunFolder.of(found.runs[1].config).results_file.unlink()  # else nothing is left to do
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "noise-L1-seed0: that run was trained on other data (fingerprint 0123456789abcdef" in said


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"start": {"train.epochs": 3, "evaluate.limit": 1}},
            "noise: L1: is not evaluated as noise: start is (images: 2",
        ),
        (
            {"objectives": {"L1": {"loss.weight": 0}, "blind": {"loss.weight": 0, "evaluate.sigmas": [50]}}},
            "noise: blind: is not evaluated as noise: start is (levels: 50, there 25, 50)",
        ),
    ],
)
def test_runs_that_could_not_be_compared_are_refused_before_the_first(
    changes: dict[str, Any], message: str, tmp_path: Path, scenes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {
        "data.root": str(scenes_root), "train.storage": str(tmp_path / "runs"), "data.crop_size": 64,
        "evaluate.segmenter": None, **({} if "objectives" in changes else {"loss.features_weights": "random"}),
    }  # fmt: skip
    small(tmp_path, keys=keys, seeds=1, **changes)
    for more in (["--dry-run"], []):
        assert main(["study", str(tmp_path / "plan.yaml"), "--name", "s", *more]) == 2
        said = capsys.readouterr().err
        assert message in said and not (tmp_path / "runs" / "s" / "noise-start").exists()


def test_a_training_run_of_that_name_is_left_alone(
    tmp_path: Path, scenes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study, a table or a sweep would take over its record; nor does a training run begin in one of theirs."""
    keys = {"data.root": str(scenes_root), "train.storage": str(tmp_path / "runs"), "evaluate.segmenter": None}
    found = small(tmp_path, keys=keys)
    write_run(found.folder, found.runs[0].config)
    given = [f"{key}={'null' if value is None else value}" for key, value in keys.items()]
    recipe = ["--recipe", "ffdnet_l1_cpu", *given]
    for words in (
        ["study", str(tmp_path / "plan.yaml"), "--dry-run"],
        ["table", "--recipes", "ffdnet_l1_cpu", *given],
        ["tune", *recipe, "--space", "learning_rate", "--trials", "1", "train.batch_size=2"],
    ):
        assert main([*words, "--name", "s"]) == 2, words
        assert f"--name=s: {found.folder} is the folder of a training run" in capsys.readouterr().err
    other = tmp_path / "runs" / "t"
    other.mkdir()
    RunFolder.at(other).write_info(run_id="0" * 32)
    assert main(["train", *recipe, "train.name=t"]) == 2
    assert f"train.name=t: {other} is the folder of a table, a study or a sweep" in capsys.readouterr().err
    assert sorted(path.name for path in other.iterdir()) == ["run.json"]


def test_a_key_that_no_run_would_use_is_refused(
    tmp_path: Path, scenes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By all that start several runs, and before the first; one that a single run uses is not."""
    keys = {"data.root": str(scenes_root), "train.storage": str(tmp_path / "runs"), "evaluate.segmenter": None}
    lpips = "evaluate.lpips_weights"
    small(tmp_path, keys=keys | {lpips: "random"})
    given = [f"{key}={'null' if value is None else value}" for key, value in keys.items()]
    for words in (
        ["study", str(tmp_path / "plan.yaml"), "--dry-run"],
        ["table", "--recipes", "ffdnet_l1_cpu", *given, f"{lpips}=random"],
        ["tune", "--recipe", "ffdnet_l1_cpu", *given, "--space", "learning_rate", "--trials", "1", f"{lpips}=random"],
    ):
        assert main([*words, "--name", "s"]) == 2, words
        assert f"{lpips}=random: is for evaluate.lpips, which is not set" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    unused = Config().replace({lpips: "random"})
    check_used([(unused, {lpips}), (unused.replace({"evaluate.lpips": "squeezenet1_1"}), {lpips})])


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    found = small(tmp_path)
    finish(found)
    one = found.runs[1]
    folder = RunFolder.of(one.config)
    write_run(folder.path, one.config, replace(scored_results(1, judges={"other": 0.5}), data="elsewhere"))
    with pytest.raises(RunsError, match=r"D2SM-3-seed0: is not evaluated as .* is \(data: elsewhere"):
        study.write(found)
    write_run(folder.path, one.config, scored_results(1, judges={"other": 0.5}), init="runs/s/another (weights 0123)")
    with pytest.raises(RunsError, match="D2SM-3-seed0: started from runs/s/another"):
        study.write(found)


def test_the_first_objective_of_the_plan_is_the_base_whatever_has_finished(tmp_path: Path) -> None:
    """Of seed 0 the first objective is missing, then all of it."""
    found = small(tmp_path)
    finish(found)
    whole, _ = study.write(found)
    left = [one for one in whole.runs if (one.objective, one.run.seed) != ("L1", 0)]
    without = replace(whole, runs=tuple(left))
    assert [row.label for row in without.rows("noise")] == ["L1", "D2SM 3", "D2SM 30"]
    base = without.base("noise")
    assert base is not None and [run.seed for run in base.runs] == [1]
    none = replace(whole, runs=tuple(one for one in left if one.objective != "L1"))
    text = study_results.text(none)
    assert none.base("noise") is None and "D2SM 30" in text and "difference from L1" in text
    (overview,) = [line for line in text.splitlines() if line.startswith("D2SM 30")][:1]
    assert set(overview.removeprefix("D2SM 30").split()) == {"-", "/"}


def test_results_come_back_as_they_were_written_without_paths_of_this_machine(tmp_path: Path) -> None:
    found = small(tmp_path)
    finish(found)
    written, files = study.write(found)
    assert [file.name for file in files] == [TEXT, RAW]
    loaded = study_results.load(files[1])
    assert study_results.document(loaded) == study_results.document(written) == files[0].read_text()
    assert study_results.text(loaded) == study_results.text(written)
    assert str(tmp_path) not in lzma.decompress(files[1].read_bytes()).decode()
    assert study.write(found)[1][1].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("init", "kept"),
    [
        ("{}/my runs/s/sr4-start/step-00000008 (weights 0123)", "sr4-start (weights 0123)"),
        ("{}/my weights.pth (weights 0123)", "my weights.pth (weights 0123)"),
        ("models:/net/3 (weights 0123)", "models:/net/3 (weights 0123)"),
        ("", ""),
    ],
)
def test_no_path_is_in_the_reasons_of_skipped_images_nor_in_the_start(tmp_path: Path, init: str, kept: str) -> None:
    (one,) = small(tmp_path, seeds=1, start=None, objectives={"L1": {"loss.weight": 0}}).runs
    measured = replace(scored_results(), skipped={"ulm/1": f"{tmp_path}/val/ulm/1.png: is truncated"})
    run = FinishedRun(tmp_path, one.config, measured, 8, "", "", "", init=init.format(tmp_path))
    results = study_results.StudyResults("s", (Compared("noise", "L1", run, 1.0),), ("noise",), ("L1",))
    study_results.save(results, tmp_path / RAW)
    assert str(tmp_path) not in lzma.decompress((tmp_path / RAW).read_bytes()).decode()
    (loaded,) = study_results.load(tmp_path / RAW).runs
    assert loaded.run.init == kept and loaded.run.results.notes() == measured.notes()
    assert "1 skipped" in loaded.run.results.notes()[0]


def test_the_tables_hold_differences_intervals_and_both_segmenters(tmp_path: Path) -> None:
    found = small(tmp_path)
    finish(found)
    results, _ = study.write(found)
    rows = results.rows("noise")
    assert [row.label for row in rows] == ["L1", "D2SM 3", "D2SM 30"] and results.start("noise") is not None
    text = study_results.text(results)
    for row in rows[1:]:
        for name in ("miou.sigma25", "miou-other.sigma50"):
            gain, interval = row.gain(rows[0], name), row.interval(rows[0], name)
            assert gain is not None and interval is not None
            assert f"{gain[0]:+.4f}" in text and f"[{interval.low:+.4f}, {interval.high:+.4f}]" in text
    head = text.splitlines()[0]
    assert "difference from L1: PSNR dB at sigma 25 / MIoU at sigma 25 / MIoU other at sigma 25 / PSNR dB at" in head
    assert "7 runs (seeds 0, 1), 3.50 hours of runs on CPUs" in text and "commit c0ffee+" in text
    assert "Fronts" in study_results.document(results) and "At equal PSNR:" in text


def test_the_tables_can_be_against_another_objective(tmp_path: Path) -> None:
    found = small(tmp_path)
    finish(found)
    results = study.write(found)[0].against("D2SM 3")
    assert [row.label for row in results.rows("noise")] == ["D2SM 3", "L1", "D2SM 30"]
    base, other = results.rows("noise")[0], results.rows("noise")[2]
    gain, text = other.gain(base, "miou.sigma25"), study_results.text(results)
    assert gain is not None and "difference from D2SM 3:" in text and f"{gain[0]:+.4f}" in text
    with pytest.raises(RunsError, match=r"^--against D2SM 4: no objective of s; did you mean D2SM 30?\?$"):
        results.against("D2SM 4")
    with pytest.raises(RunsError, match="there are D2SM 3, L1, D2SM 30$"):
        results.against("x")


def test_the_plan_in_the_readme_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "pipelines" / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n(recipe: .*?)```", page, re.DOTALL)
    (tmp_path / "plan.yaml").write_text(text)
    found = study.read(tmp_path / "plan.yaml", name="map", changes={}, absolute=False)
    assert found.settings == ["sr4 small", "sr4 large", "jpeg10 small", "jpeg10 large"] and len(found.runs) == 48


@pytest.mark.parametrize("content", [b"", b"{}", lzma.compress(b"{}"), lzma.compress(b"nothing"), None])
def test_a_file_of_no_study_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / RAW
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        RunsError, match=r"study\.json\.xz: .*give the study\.json\.xz that `d2sm study` wrote"
    ) as caught:
        study_results.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tree: tree.update(objectives=[], runs=tree["runs"][:1]), "holds no run of an objective"),
        (
            lambda tree: tree["runs"][2]["results"].update(data="elsewhere"),
            r"noise: D2SM 3 seed 0: is not evaluated as .*study\.json\.xz: noise: start seed 0 is \(data: elsewhere",
        ),
        (
            lambda tree: tree["runs"][2].update(init="another"),
            r"noise: D2SM 3 seed 0: started from another, .*study\.json\.xz: noise: L1 seed 0 from random weights",
        ),
    ],
)
def test_a_file_of_runs_that_cannot_be_compared_is_one_line(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    found = small(tmp_path)
    finish(found)
    _, (_, file) = study.write(found)
    tree = json.loads(lzma.decompress(file.read_bytes()))
    edit(tree)
    file.write_bytes(lzma.compress(json.dumps(tree).encode()))
    with pytest.raises(RunsError, match=rf"study\.json\.xz: {message}") as caught:
        study_results.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_study_from_plan_to_tables(
    ray_session: None, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A common start and two objectives; the same command again trains nothing; the file gives the same tables."""
    new_store(tmp_path)
    keys = {
        "data.root": str(scenes_root), "train.storage": str(tmp_path), "data.crop_size": 64, "data.crops_per_image": 2,
        "data.shuffle_images": 6, "model.width": 8, "model.depth": 3, "train.batch_size": 4, "train.num_workers": 0,
        "train.cpus_per_worker": 0.5, "evaluate.actors": 0, "evaluate.pictures": 0,
        "evaluate.segmenter": "tests.helpers.segmenters:by_brightness",
        "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "loss.queue_size": 32,
    }  # fmt: skip
    file = plan(
        tmp_path, recipe="", seeds=1, keys=keys, start={"train.epochs": 2},
        settings={"degradation": {"noise": {"noise.sigma": [0, 50], "evaluate.sigmas": [50]}}},
        objectives={"L1": {"loss.weight": 0}, "D2SM": {"loss.weight": 3}},
    )  # fmt: skip
    words = ["study", str(file), "--name", "s", "--quiet", "--trust"]
    assert main([*words, "--dry-run"]) == 0
    assert "3 runs, 0 done" in capsys.readouterr().out and not (tmp_path / "s").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "difference from L1: PSNR dB / MIoU" in said and str(tmp_path / "s" / RAW) in said
    found = study.settled(study.read(file, name="s", changes={}))
    start = RunFolder.of(found.starts["noise"].config)
    for one in found.runs:
        info = RunFolder.of(one.config).read_info()
        assert str(start.path) in note(one.config, RunFolder.of(one.config)) and info["seconds"] > 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*.safetensors")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*.safetensors")} == written
    capsys.readouterr()
    assert main(["study", str(tmp_path / "s" / RAW)]) == 0
    tables = capsys.readouterr().out
    assert "D2SM" in tables and tables.strip() in said
    raw = json.loads(lzma.decompress((tmp_path / "s" / RAW).read_bytes()))
    assert [run["objective"] for run in raw["runs"]] == [START, "L1", "D2SM"]
