"""The table of recipes: its rows and runs, what is done already, what is written; real runs, one of them failing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.cli.arguments import needed, table_given
from cluster.cli.main import main
from cluster.cli.parser import parser
from pipelines import evaluate, experiment, parallel, table, tracking
from pipelines.comparison import render
from pipelines.comparison.rows import FinishedRun, RunsError, label, read_run
from pipelines.config import Config
from pipelines.recipes import recipe, recipes
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime.progress import Line
from pipelines.tracking.outbox import UNSENT
from pipelines.tracking.store import TrackingError
from pipelines.training import tracked
from tests.conftest import tiny_config
from tests.helpers.finished_runs import results, write_run
from tests.helpers.owners import owning
from tests.helpers.stores import new_store


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow sets the variable when a test tells it a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def tiny(root: Path, storage: Path, **changes: object) -> Config:
    """L1 alone, trained and evaluated by the run's own process."""
    few = {"train__num_workers": 0, "loss__weight": 0.0, "evaluate__actors": 0, "evaluate__sigmas": [25]}
    return tiny_config(root, storage, **(few | {"train__epochs": 1, "evaluate__pictures": 0} | changes))


def test_rows_are_recipes_patterns_and_recipes_with_other_keys() -> None:
    rows = table.rows_of(["ffdnet_l1_cpu", "ffdnet_d2sm*_cpu", "ffdnet_d2sm_cpu:loss.weight=1"], {"data.root": "/d"})
    assert [row.recipe for row in rows] == [
        "ffdnet_l1_cpu", "ffdnet_d2sm_cpu", "ffdnet_d2sm_internal_cpu", "ffdnet_d2sm_cpu",
    ]  # fmt: skip
    assert rows[3].loss.terms["d2sm"] == 1 and all(row.data.root == "/d" for row in rows)
    (chain,) = table.rows_of(["ffdnet_l1_cpu:degrade.chain=jpeg:10:loss.weight=1"], {})
    assert chain.degrade.chain == "jpeg:10" and chain.loss.weight == 1
    assert len(table.rows_of(["*_cpu"], {})) == sum(name.endswith("_cpu") for name in recipes())


@pytest.mark.parametrize(
    "words, message",
    [
        (["--recipes", "ffdnet_l2_cpu"], "recipe 'ffdnet_l2_cpu': no such recipe; did you mean ffdnet_l1_cpu"),
        (["--recipes", "ffdnet_l1_cpu:loss.queue=1"], "loss.queue"),
        (["--recipes", "ffdnet_l1_cpu", "ffdnet_l1*"], "ffdnet_l1*: the row ffdnet_l1_cpu"),
        (["--recipes", "ffdnet_l1_cpu", "--seeds", "0"], "seeds=0: "),
        (["--recipes", "ffdnet_l1_cpu", "tracking.alias=best"], "tracking.alias=best: a table registers no model"),
        (["--recipes", "ffdnet_l1_cpu:tracking.register_as=m"], "tracking.register_as=m: a table registers no model"),
        (["--recipes", "ffdnet_l1_cpu", "--name", "../up"], "name='../up': "),
        (["--recipes", "ffdnet_l1_cpu", "train.storage=s3://bucket"], "train.storage=s3://bucket: "),
    ],
)
def test_a_wrong_table_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", *words, "data.root=/nowhere"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--recipes", "ffdnet_l1_cpu"]) == 2
    assert "data.root: " in capsys.readouterr().err
    assert main(["table", "--recipes", "ffdnet_l1_cpu", "--data", "/nowhere", f"train.storage={tmp_path}"]) == 2
    assert "/nowhere" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_dry_run_checks_and_says_what_is_left(
    scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table", "--recipes", "ffdnet_l1_cpu", "ffdnet_d2sm_cpu", "--name", "t", "--dry-run"]
    words += [f"data.root={scenes_root}", f"train.storage={tmp_path}", "train.max_steps=3"]
    assert main([*words, "evaluate.segmenter=null", "train.batch_size=8", "data.crop_size=64"]) == 0
    assert capsys.readouterr().out == "table t: 2 rows, 4 runs, 0 done; 12 steps of 96 crops left\n"
    assert not list(tmp_path.iterdir())
    assert main([*words, "evaluate.segmenter=null", "data.crop_size=2048"]) == 2
    assert "data.crop_size=2048" in capsys.readouterr().err


def test_a_password_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe("ffdnet_l1_cpu").replace({"data.root": "/d", "train.storage": str(tmp_path)})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:planted@127.0.0.1:1/db")
    with pytest.raises(TrackingError, match="a table writes its tracking URI into files") as caught:
        table.runs_of([config], name="t", seeds=1)
    assert "planted" not in str(caught.value)


def test_seeds_come_one_after_the_other_and_runs_are_named_by_what_they_are(tmp_path: Path) -> None:
    rows = table.rows_of(["ffdnet_l1_cpu", "ffdnet_d2sm_cpu:loss.weight=1"], {"train.storage": str(tmp_path)})
    found = table.runs_of(rows, name="t", seeds=2)
    assert [config.train.name for config in found] == [
        "ffdnet_l1_cpu-seed0", "ffdnet_d2sm_cpu-loss.weight=1.0-seed0",
        "ffdnet_l1_cpu-seed1", "ffdnet_d2sm_cpu-loss.weight=1.0-seed1",
    ]  # fmt: skip
    assert [config.train.seed for config in found] == [0, 0, 1, 1]
    assert {RunFolder.of(config).path.parent for config in found} == {tmp_path / "t"}
    assert {config.tracking.uri for config in found} == {f"sqlite:///{tmp_path}/mlflow.db"}


def test_a_row_with_many_changed_keys_has_a_name_that_a_disk_takes(tmp_path: Path) -> None:
    """Names that always fitted stay as they were, so that their runs are found again."""
    long = ":".join(
        f"{key}={value}"
        for key, value in {
            "loss.queue_size": 64, "train.epochs": 3, "train.batch_size": 8, "train.halve_at": list(range(1, 40)),
            "train.betas": [0.9, 0.995], "train.schedule": "cosine", "train.warmup_steps": 12, "train.clip": 0.5,
            "train.ema": 0.999, "data.crop_size": 48, "data.crops_per_image": 3, "model.width": 16, "model.depth": 4,
        }.items()
    )  # fmt: skip
    rows = table.rows_of(
        [f"ffdnet_d2sm_cpu:{long}", f"ffdnet_d2sm_cpu:{long}:train.lr=0.003"], {"train.storage": str(tmp_path)}
    )
    names = [config.train.name for config in table.runs_of(rows, name="t", seeds=2)]
    assert names == [config.train.name for config in table.runs_of(rows, name="t", seeds=2)]
    assert len(set(names)) == 4 and all(len(name) <= 255 for name in names) and len(label(rows[0])) > 255
    for name in names:
        assert name.startswith("ffdnet_d2sm_cpu-") and name[-6:-1] == "-seed"
        (tmp_path / name).mkdir()
    short = table.rows_of(["ffdnet_l1_cpu:train.lr=0.003"], {"train.storage": str(tmp_path)})
    assert table.runs_of(short, name="t", seeds=1)[0].train.name == "ffdnet_l1_cpu-train.lr=0.003-seed0"


def test_what_is_finished_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs are there already, so nothing is trained, and no Ray is started."""
    small = {"model.width": 4, "model.depth": 3, "train.storage": str(tmp_path), "data.root": str(tmp_path)}
    rows = table.rows_of(["ffdnet_l1_cpu", "ffdnet_d2sm_cpu"], small)
    for number, config in enumerate(table.runs_of(rows, name="t", seeds=2)):
        folder = write_run(RunFolder.of(config).path, config, results(27 + number))
        RunFolder.at(folder).write_info(run_id=f"run{number}", page=f"#/runs/run{number}")
    outcome = table.table(rows, name="t", seeds=2, quiet=True)
    assert not outcome.failed
    assert [row.mean("psnr.sigma25") for row in outcome.rows] == [28.0, 29.0]
    text = (outcome.folder / render.TEXT).read_text()
    assert "[28.00 ±1.41 / .800 ±.000 / .600 ±.000](#row-0)" in text
    assert "| gain over the first row |  |  | +1.00 ±0.00 / +.000 ±.000 / +.000 ±.000" in text
    assert "| in the paper |  |  | 35.03 / .925 / .605 |" in text
    assert "[run2](http://127.0.0.1:5000/#/runs/run2), commit c0ffee+" in text
    tree = json.loads((outcome.folder / render.JSON).read_text())
    assert tree["rows"][1]["mean"]["psnr.sigma25"] == 29.0 and tree["noisy"]["psnr.sigma25"] == 20.0
    assert [run["seed"] for run in tree["rows"][0]["runs"]] == [0, 1]
    client = MlflowClient(outcome.uri)
    run = client.get_run(RunFolder.at(outcome.folder).read_info()["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["d2sm.table"] == "t" and not run.data.params
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {render.TEXT, render.JSON}


def test_what_mlflow_lacks_of_a_finished_run_is_sent_by_the_same_command_or_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = new_store(tmp_path)
    keys = {"model.width": 4, "model.depth": 3, "train.storage": str(tmp_path), "data.root": str(tmp_path)}
    rows = table.rows_of(["ffdnet_l1_cpu"], keys)
    (config,) = table.runs_of(rows, name="t", seeds=1)
    folder = RunFolder.at(write_run(RunFolder.of(config).path, config, results(27)))
    with tracking.open_run(config, run_dir=folder.path, tags={}) as own:
        tracked.note(folder, own)
    with tracking.reopen(own.id, uri="http://127.0.0.1:9", run_dir=folder.path, page="", step=7) as away:
        away.results({"psnr.sigma25": 27.0})
    assert "1 records wait in" in tracked.untracked(away, folder) and (folder.path / UNSENT).exists()
    shutil.copytree(folder.path, tmp_path / "kept")
    assert table.table(rows, name="t", seeds=1, quiet=True).untracked == {}
    assert not (folder.path / UNSENT).exists()
    assert MlflowClient(uri).get_run(own.id).data.metrics["psnr.sigma25"] == 27
    shutil.copytree(tmp_path / "kept", folder.path, dirs_exist_ok=True)
    MlflowClient(uri).delete_run(own.id)
    words = ["table", "--recipes", "ffdnet_l1_cpu", "--name", "t", "--seeds", "1", "--quiet"]
    assert main([*words, *(f"{key}={value}" for key, value in keys.items())]) == 1
    said = capsys.readouterr().err
    assert f"d2sm: {config.train.name}: " in said and own.id in said and (folder.path / UNSENT).exists()


def test_rows_that_are_not_evaluated_alike_are_refused_before_the_first_run(scenes_root: Path, tmp_path: Path) -> None:
    """Of what is missing, and of what has finished: no run, no Ray, no MLflow store."""
    noise = tiny(scenes_root, tmp_path, evaluate__segmenter=None, model__width=4)
    jpeg = noise.replace({"evaluate.sigmas": [25, 35, 50], "degrade.chain": "jpeg:10"})
    with pytest.raises(
        RunsError, match=r"^run .*jpeg:10: is not evaluated as run is \(levels: jpeg10, there 25\); .*levels"
    ):
        table.table([noise, jpeg], name="t", seeds=1, quiet=True)
    (config,) = table.runs_of([noise], name="t", seeds=1)
    folder = write_run(RunFolder.of(config).path, config, results())
    with pytest.raises(
        RunsError, match=r"^run train.lr=0.5: is not evaluated as .*-seed0 is \(levels: 25, there 25, 35"
    ):
        table.table([noise, noise.replace({"train.lr": 0.5})], name="t", seeds=1, quiet=True)
    assert [path.name for path in (tmp_path / "t").iterdir() if path.is_dir()] == [folder.name]
    assert not (tmp_path / "mlflow.db").exists()


def test_an_image_found_damaged_by_a_finished_run_is_no_difference(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny(scenes_root, tmp_path, evaluate__segmenter=None, data__bad_images="skip")
    subject = evaluate.check(config)
    planned = {"b": parallel.Training(config, 1, "", subject)}
    whole = evaluate.without_numbers(config, subject)
    damaged = {subject.items["name"][0].as_py(): "is truncated"}
    less = replace(evaluate.without_numbers(config, subject, damaged=damaged), skipped=damaged)
    assert (whole.images, less.images) == (2, 1) and whole.data != less.data
    for measured in (whole, less):
        run = FinishedRun(tmp_path / "a", config, measured, 1, "", "", "")
        parallel.check_compared([(config, run)], planned)
    other = FinishedRun(tmp_path / "a", config, replace(whole, data="x"), 1, "", "", "")
    with pytest.raises(RunsError, match="b: is not evaluated as .*a is .data: "):
        parallel.check_compared([(config, other)], planned)


def test_a_finished_run_is_not_taken_for_one_with_other_weights_or_images(scenes_root: Path, tmp_path: Path) -> None:
    """A path may change, not what is there; a path of which nothing is left is not looked at."""
    for name, content in (("a", "0.5"), ("same", "0.5"), ("other", "0.25")):
        (tmp_path / name).write_text(content)
    key, judge = "evaluate.segmenter_weights", "tests.helpers.segmenters:from_file"
    own = tiny(scenes_root, tmp_path, evaluate__segmenter=judge, model__width=4).replace({key: str(tmp_path / "a")})
    (config,) = table.runs_of([own], name="t", seeds=1)
    folder = write_run(RunFolder.of(config).path, config, evaluate.without_numbers(config, evaluate.check(config)))
    done = parallel.finished(config)
    assert done is not None
    for name in ("a", "same", "gone"):
        parallel.check_compared([(config.replace({key: str(tmp_path / name)}), done)], {})
    now = config.replace({key: str(tmp_path / "other")})
    line = rf"^{folder}, as asked for now: is not evaluated as {folder} is \(weights of the segmenter: .*{key}$"
    with pytest.raises(RunsError, match=line):
        parallel.check_compared([(now, done)], {})
    less = shutil.copytree(scenes_root, tmp_path / "less")
    next(less.glob("leftImg8bit/val/*/*.png")).unlink()
    with pytest.raises(RunsError, match=r"as asked for now: is not evaluated as .*images: 1, there 2"):
        table.table([own.replace({"data.root": str(less)})], name="t", seeds=1, quiet=True)


@pytest.mark.parametrize(
    "changes, again",
    [
        ({}, False),
        ({"train.num_workers": 1, "evaluate.actors": 0, "tracking.experiment": "other"}, False),
        ({"train.epochs": 3}, True),
        ({"train.max_steps": 4}, True),
        ({"evaluate.sigmas": [10]}, True),
    ],
)
def test_done_means_trained_and_measured_as_asked_now(tmp_path: Path, changes: dict[str, object], again: bool) -> None:
    small = {"model.width": 4, "model.depth": 3, "train.storage": str(tmp_path)}
    (config,) = table.runs_of(table.rows_of(["ffdnet_l1_cpu"], small), name="t", seeds=1)
    write_run(RunFolder.of(config).path, config, results())
    assert parallel.is_done(config.replace(changes)) is not again
    RunFolder.of(config).write_info(completed=False)
    assert not parallel.is_done(config.replace(changes))


def test_another_evaluation_of_a_run_is_done_once_it_has_been_made(scenes_root: Path, tmp_path: Path) -> None:
    """And then the first one is not: results.json holds the numbers of one evaluation."""
    own = tiny(scenes_root, tmp_path, model__width=4, evaluate__sigmas=[25, 50])
    (first,) = table.runs_of([own], name="t", seeds=1)
    other = first.replace({"evaluate.limit": 1, "evaluate.sigmas": [25]})
    measured = {config: evaluate.without_numbers(config, evaluate.check(config)) for config in (first, other)}
    folder = RunFolder.of(first)
    write_run(folder.path, first, measured[first])
    folder.open(other, "abc")  # what a training of no steps does before its evaluation, which may be interrupted
    assert parallel.is_done(first) and not parallel.is_done(other)
    experiment.save_results(folder, measured[other], step=8)
    assert parallel.is_done(other) and not parallel.is_done(first)
    run = read_run(folder.path)
    assert (run.config.evaluate.limit, run.config.evaluate.sigmas, run.results.images) == (1, (25.0,), 1)
    moved = replace(measured[first], measured_with={**measured[first].measured_with, "data.root": "/moved"})
    experiment.save_results(folder, moved, step=8)
    assert parallel.is_done(first) and read_run(folder.path).config.data.root == "/moved"


def test_a_failed_run_is_passed_over_where_mlflow_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other runs go on; all is said on the line."""
    (config,) = table.runs_of(
        table.rows_of(["ffdnet_l1_cpu"], {"train.storage": str(tmp_path), "tracking.uri": "http://127.0.0.1:9"}),
        name="t",
        seeds=1,
    )
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.write_info(run_id="0" * 32)
    with Line("table", 1, quiet=True) as line:
        parallel._settle(config, "FAILED", line)
    said = capsys.readouterr().err.splitlines()
    assert any("MLflow does not show it as FAILED" in each and "http://127.0.0.1:9" in each for each in said)


def test_the_mlflow_run_of_a_process_that_took_a_run_up_stays_as_it_is(
    ray_session: None, scenes_root: Path, tmp_path: Path
) -> None:
    """As after two commands at once: what begins second fails, and neither run.json nor the record is its own."""
    client = MlflowClient(new_store(tmp_path))
    config = tiny(scenes_root, tmp_path)
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    run_id = client.create_run("0").info.run_id
    folder.write_info(run_id=run_id)
    before = folder.info_file.read_bytes()
    with owning(folder.path), Line("table", 1, quiet=True) as line:
        ended = parallel.run_all({"row": config}, 1, line, lambda: None)
        assert client.get_run(run_id).info.status == "RUNNING" and folder.info_file.read_bytes() == before
    assert "is in use by process" in ended.failed[config.train.name]
    with Line("table", 1, quiet=True) as line:
        parallel._settle(config, "FAILED", line)
    assert client.get_run(run_id).info.status == "FAILED"


def test_the_typed_keys_of_each_row_are_known(tmp_path: Path) -> None:
    """Also those that argparse counts as rows, and those of a row alone, even if the value is the default."""
    words = [
        "table",
        "--recipes",
        "ffdnet_l1_cpu",
        "ffdnet_d2sm_cpu:data.layout=cityscapes",
        "train.lr=1e-3",
        "--data",
        "/d",
    ]
    args = parser().parse_args([*words, "train.epochs=2"])
    common = {"train.lr", "train.epochs", "data.root"}
    assert table_given(args) == [given for _, given in needed(args)] == [common, common | {"data.layout"}]
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "keys: {data.layout: cityscapes}\nsettings: {one: {a: {data.root: /d}}}\nobjectives: {L1: {loss.l1: 1}}\n"
    )
    ((_, given),) = needed(parser().parse_args(["study", str(plan), "train.lr=1"]))
    assert given == {"data.layout", "data.root", "loss.l1", "train.lr"}


@pytest.mark.slow
def test_a_run_that_fails_is_said_and_the_others_stand(
    ray_session: None, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_store(tmp_path)
    good = tiny(scenes_root, tmp_path)
    outcome = table.table([good, good.replace({"train.lr": 1e30})], name="t", seeds=1, quiet=True)
    assert [row.label for row in outcome.rows] == [label(good)]
    ((name, why),) = outcome.failed.items()
    assert "train.lr=1e+30" in name and "is not finite" in why
    client, (row,) = MlflowClient(outcome.uri), outcome.rows
    found = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert found[row.runs[0].name].info.status == "FINISHED" and found[name].info.status == "FAILED"
    assert found[row.runs[0].name].data.tags["mlflow.parentRunId"] == found["t"].info.run_id


@pytest.mark.slow
def test_a_run_that_fails_after_its_evaluation_is_tried_again(
    ray_session: None, scenes_root: Path, tmp_path: Path
) -> None:
    new_store(tmp_path)
    row = tiny(scenes_root, tmp_path, evaluate__pictures=1, train__max_steps=1, evaluate__limit=1)
    (config,) = table.runs_of([row], name="t", seeds=1)
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.pictures.touch()  # in the way of the pictures
    outcome = table.table([row], name="t", seeds=1, quiet=True)
    assert list(outcome.failed) == [config.train.name] and len(outcome.rows) == 1
    assert not parallel.is_done(config) and parallel.finished(config)
    folder.pictures.unlink()
    assert not table.table([row], name="t", seeds=1, quiet=True).failed
    assert parallel.is_done(config) and list(folder.pictures.iterdir())


@pytest.mark.long
def test_a_table_that_is_stopped_goes_on(scenes_root: Path, tmp_path: Path) -> None:
    """Ctrl-C while the second of two runs trains: the first is not repeated, the second goes on where it stopped."""
    words = [sys.executable, "-m", "cluster.cli", "table", "--recipes", "ffdnet_l1_cpu", "--name", "t", "--seeds", "2",
             "--concurrent", "1", "--data", str(scenes_root), f"train.storage={tmp_path}", "data.crop_size=64",
             "data.crops_per_image=8", "train.batch_size=4", "train.num_workers=1", "train.epochs=40",
             "evaluate.segmenter=null", "evaluate.actors=0", "train.checkpoint_every=20", "model.width=8"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    second = next_run(tmp_path / "t", "seed1")
    try:
        wait_for(lambda: checkpoint.latest(second) is not None)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    first = next_run(tmp_path / "t", "seed0") / "results.json"
    before = first.stat().st_mtime
    reached = checkpoint.meta(checkpoint.resolve(second))["step"]
    assert 0 < reached < 480
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    status = client.get_run(RunFolder.at(second).read_info()["run_id"]).info.status
    assert status == "KILLED"
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime == before and read_run(second).step == 480
    assert "table.md" in done.stdout


def next_run(folder: Path, end: str) -> Path:
    """The run's folder, once it is there."""
    wait_for(lambda: list(folder.glob(f"*-{end}")) != [])
    return next(folder.glob(f"*-{end}"))


def wait_for(ready: object, patience: float = 240.0) -> None:
    until = time.monotonic() + patience
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < until, "not in time"
        time.sleep(0.2)
