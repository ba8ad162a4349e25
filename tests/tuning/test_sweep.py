"""A sweep as its user runs it: real trials on Ray Tune, real kills, a real MLflow server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from cluster.cli.main import main
from pipelines import tracking
from pipelines.evaluate import evaluate
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.tracking.outbox import REFUSED, UNSENT
from pipelines.train import Trained, fit
from tests.helpers.checkpoints import bundle_of
from tests.helpers.mlflow_server import Server
from tests.helpers.stores import new_store
from tests.helpers.sweeps import tiny_base, tiny_sweep
from tuning import mlflow_run
from tuning.run import _announcement, run
from tuning.space import SpaceError
from tuning.sweep import Sweep, check, resolved
from tuning.trials import TrialSummary


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load_model(checkpoint.resolve(folder))[0].state_dict())


def changed(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.glob("0*/reports/*.json")}


@pytest.mark.slow
def test_a_sweep_from_space_to_best(ray_session: None, l1_run: Trained, scenes_root: Path, tmp_path: Path) -> None:
    space = {"train.lr": [1e-3, 1e30]}
    new_store(tmp_path)
    sweep = tiny_sweep(scenes_root, tmp_path, space=space, metrics=("psnr.sigma25", "loss.l1"))
    outcome = run(sweep, quiet=True)
    # A trial whose loss is not finite is a failed row with its reason; the sweep goes on.
    assert [(trial.number, trial.state) for trial in outcome.trials] == [(0, "finished"), (1, "failed")]
    assert "is not finite" in outcome.trials[1].why and "is not finite" in outcome.text()
    assert outcome.best is not None and outcome.best.point == {"train.lr": 1e-3}
    assert outcome.config is not None and outcome.config.train.lr == 1e-3
    # A trial is what `fit` makes of its configuration, bit for bit.
    trial = weights(outcome.sweep.folder / "000")
    assert all(torch.equal(tensor, trial[name]) for name, tensor in weights(l1_run.run_dir).items())
    _in_mlflow(outcome.uri, outcome.run_id)
    # The same sweep again repeats nothing.
    before = changed(outcome.sweep.folder)
    assert run(sweep, quiet=True).trials == outcome.trials and changed(outcome.sweep.folder) == before
    with pytest.raises(SpaceError, match="reports=2: .*sweep s .*with 1"):
        run(tiny_sweep(scenes_root, tmp_path, space=space, metrics=sweep.metrics, reports=2), quiet=True)


def _in_mlflow(uri: str, parent: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs(client.get_run(parent).info.experiment_id)
    trials = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent}
    assert {name: run.info.status for name, run in trials.items()} == {"000": "FINISHED", "001": "FAILED"}
    assert {name: run.data.tags["d2sm.trial"] for name, run in trials.items()} == {"000": "finished", "001": "failed"}
    first = trials["000"]
    assert first.data.params["train.lr"] == "0.001" and "psnr.sigma25" in first.data.metrics
    assert client.get_metric_history(first.info.run_id, "psnr.sigma25")[0].step == 6
    whole = client.get_run(parent)
    assert whole.info.status == "FINISHED" and whole.data.tags["d2sm.sweep.best"] == "000"
    kept = {file.path for file in client.list_artifacts(parent)}
    assert {"trials.txt", "search.png", "best.yaml"} <= kept


@pytest.mark.slow
@pytest.mark.long
def test_asha_stops_bad_trials_early(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    # One at a time and the good one first: the other, whose first steps go astray, ends at its first rung.
    space = {"train.lr": [1e-3, 0.3]}
    sweep = tiny_sweep(scenes_root, tmp_path, space=space, scheduler="asha", reports=2)
    outcome = run(sweep, concurrent=1, quiet=True)
    assert [(trial.state, round(trial.share, 2)) for trial in outcome.trials] == [("finished", 1.0), ("stopped", 0.33)]
    steps = [int(checkpoint.meta(checkpoint.resolve(outcome.sweep.folder / f"00{i}"))["step"]) for i in range(2)]
    assert steps == [6, 2]


@pytest.mark.slow
@pytest.mark.long
def test_a_trial_is_measured_between_by_the_validation_of_its_last_step(
    ray_session: None, scenes_root: Path, tmp_path: Path
) -> None:
    """The first was trained up to there by an earlier version, which evaluated it then: the numbers are the same."""
    space = {"train.lr": [1e-3, 2e-3]}
    sweep = resolved(tiny_sweep(scenes_root, tmp_path, space=space, metrics=("psnr.sigma25",), reports=2))
    place = {"train.name": "000", "train.storage": str(sweep.folder), "train.max_steps": 3}
    fit(sweep.configuration({"train.lr": 1e-3}).replace(place), quiet=True)
    outcome = run(sweep, concurrent=1, quiet=True)
    assert [trial.state for trial in outcome.trials] == ["finished", "finished"]
    for number in (0, 1):
        folder = sweep.folder / f"00{number}"
        between = json.loads((folder / "reports" / "0001.json").read_text())
        measured = evaluate(folder / checkpoint.name_of(3), quiet=True).flat()
        assert between["step"] == 3 and between["psnr.sigma25"] == pytest.approx(measured["psnr.sigma25"], abs=1e-6)
        client, run_id = MlflowClient(outcome.uri), RunFolder.at(folder).read_info()["run_id"]
        curve = client.get_metric_history(run_id, "val.psnr.sigma25")
        assert [point.step for point in curve] == [3] * number


@pytest.mark.slow
@pytest.mark.long
def test_population_based_training_takes_over_better_state(
    ray_session: None, scenes_root: Path, tmp_path: Path
) -> None:
    sweep = tiny_sweep(scenes_root, tmp_path, space={"train.lr": [1e-3, 0.3]}, scheduler="pbt", reports=2)
    sweep = replace(sweep, base=sweep.base.replace({"train.num_workers": 1}))
    outcome = run(sweep, concurrent=1, quiet=True)  # they take turns, as on a machine that holds one at a time
    assert [trial.state for trial in outcome.trials] == ["finished", "finished"]
    taken = list(outcome.sweep.folder.glob("001-from-000-*"))
    assert taken  # the one that went astray went on from the other's checkpoint
    assert outcome.trials[1].value("step") == 6


SWEEP = """
import sys
from pathlib import Path
from tests.helpers.sweeps import tiny_sweep
from tuning.run import run
space = {"train.lr": [1e-3, 2e-3, 3e-3]}
print(run(tiny_sweep(Path(sys.argv[1]), Path(sys.argv[2]), space=space), concurrent=1).text())
"""
# A cluster whose only worker node is lost while a trial trains, and replaced.
NODE_LOSS = """
import os, sys, threading, time
from pathlib import Path
from pipelines.runtime import auth
auth.make_token()
os.environ["RAY_AUTH_MODE"] = "token"  # a cluster that listens to others is joined with a token alone
from ray.cluster_utils import Cluster
from tests.helpers.sweeps import tiny_sweep
from tuning.run import run
from tuning.sweep import Sweep

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
first = cluster.add_node(num_cpus=2)
os.environ["RAY_ADDRESS"] = cluster.address
sweep = tiny_sweep(Path(sys.argv[1]), Path(sys.argv[2]), space={"train.lr": [1e-3]})
keys = {"train.num_workers": 1, "train.epochs": 60, "train.checkpoint_every": 5, "train.max_failures": 2}
base = sweep.base.replace(keys)

thread = threading.Thread(target=lambda: print(run(Sweep(**{**vars(sweep), "base": base}), concurrent=1).text()))
thread.start()
while not list(sweep.folder.glob("000/step-*/meta.json")):
    time.sleep(0.05)
cluster.add_node(num_cpus=2)  # nodes are added in the main thread
cluster.remove_node(first, allow_graceful=False)
print("lost", [path.name for path in sweep.folder.glob("000/step-*")])
thread.join()
"""


def start(script: str, root: Path, storage: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=Path.cwd(),
    )


def struck(root: Path, storage: Path, blow: signal.Signals, reports: int) -> dict[str, float]:
    """Start the sweep, or go on with it, and end it when so many trials have been measured; what was measured."""
    process = start(SWEEP, root, storage)
    end = time.monotonic() + 240
    while len(changed(storage / "s")) < reports and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, blow)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0, said
    before = changed(storage / "s")
    assert len(before) == reports, said
    return before


@pytest.mark.slow
@pytest.mark.long
def test_a_stopped_and_killed_sweep_goes_on(scenes_root: Path, tmp_path: Path) -> None:
    first = struck(scenes_root, tmp_path, signal.SIGINT, 1)
    second = struck(scenes_root, tmp_path, signal.SIGKILL, 2)
    done = start(SWEEP, scenes_root, tmp_path)
    said, _ = done.communicate(timeout=240)
    assert done.returncode == 0, said
    assert said.count("finished") >= 3
    last = changed(tmp_path / "s")
    assert len(last) == 3 and last.items() >= second.items() >= first.items()  # no finished trial was repeated
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"])
    assert len(runs) == 4 and {run.info.status for run in runs} == {"FINISHED"}
    for found in runs:
        if found.info.run_name != "s":
            assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [6]


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_that_is_stopped_on_the_command_line_closes_its_runs(scenes_root: Path, tmp_path: Path) -> None:
    """Ctrl-C, and later SIGTERM, while the second of two trials trains: table, best.yaml and MLflow say what was."""
    space = tmp_path / "space.yaml"
    space.write_text("data.crops_per_image: [1, 1000]\n")  # the first trial has a few steps, the second thousands
    words = [sys.executable, "-m", "cluster.cli", "tune", "--recipe", "ffdnet_l1_cpu", "--space", str(space), "--name",
             "s", "--search", "grid", "--scheduler", "none", "--metric", "loss.l1", "--reports", "1", "--concurrent",
             "1", f"data.root={scenes_root}", f"train.storage={tmp_path}", "data.crop_size=64",
             "train.batch_size=4", "train.num_workers=1", "train.epochs=4", "evaluate.segmenter=null",
             "train.checkpoint_every=4", "model.width=8"]  # fmt: skip
    second, reached = tmp_path / "s" / "001", 0
    for blow in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            _wait_for_a_step_after(reached, second, process)
            process.send_signal(blow)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130 and "d2sm: stopped; " in said and "Traceback" not in said, said
        reached = checkpoint.meta(checkpoint.resolve(second))["step"]
        lines = [line.split() for line in (tmp_path / "s" / "trials.txt").read_text().splitlines()]
        assert {line[0]: line[1] for line in lines[1:]} == {"000": "finished", "001": "running"}
        assert "crops_per_image: 1\n" in (tmp_path / "s" / "best.yaml").read_text()
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        runs = {run.info.run_name: run for run in client.search_runs(["1"])}
        assert {name: run.info.status for name, run in runs.items()} == {
            "s": "KILLED",
            "000": "FINISHED",
            "001": "KILLED",
        }
        assert "best.yaml" in {file.path for file in client.list_artifacts(runs["s"].info.run_id)}
        assert runs["001"].data.tags["d2sm.trial"] == "running"
        for file in ("trials.txt", "best.yaml"):
            (tmp_path / "s" / file).unlink()


def _wait_for_a_step_after(step: int, run_dir: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while (last := checkpoint.latest(run_dir)) is None or checkpoint.meta(last)["step"] <= step:
        assert time.monotonic() < end, "not in time"
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.long
def test_a_lost_node_costs_no_trial(scenes_root: Path, tmp_path: Path) -> None:
    process = start(NODE_LOSS, scenes_root, tmp_path)
    try:
        said, _ = process.communicate(timeout=400)
    finally:  # if the sweep has failed, the script waits for its node
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0 and "lost ['step-" in said and "step-00000180" not in said, said
    table = [line.split() for line in said.splitlines() if line.startswith("000 ")]
    assert [line[1] for line in table] == ["finished"], said


@pytest.mark.slow
@pytest.mark.long
def test_the_server_goes_away_and_comes_back(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with Server(folder) as server:
        sweep = tiny_sweep(scenes_root, tmp_path / "runs")
        sweep = Sweep(**{**vars(sweep), "base": sweep.base.replace({"tracking.uri": server.uri})})

        def outage() -> None:
            while not changed(sweep.folder):
                time.sleep(0.1)
            server.kill()
            time.sleep(5)
            server.start()

        thread = threading.Thread(target=outage)
        thread.start()
        outcome = run(sweep, concurrent=1, quiet=True)
        thread.join()
        assert [trial.state for trial in outcome.trials] == ["finished", "finished"]
        client = MlflowClient(tracking_uri=server.uri)
        trials = [run for run in client.search_runs(["1"]) if "mlflow.parentRunId" in run.data.tags]
        assert len(trials) == 2 and {run.info.status for run in trials} == {"FINISHED"}
        for found in trials:
            assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [6]
        assert "search.png" in {file.path for file in client.list_artifacts(outcome.run_id)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"loss.queue": [1]}}, "loss.queue: "),
        ({"search": "random", "trials": 0}, "^--trials 0: "),
        ({"search": "bayes"}, "search='bayes': .*random, grid, optuna"),
        ({"scheduler": "hyperband"}, "scheduler='hyperband': .*asha, pbt, none"),
        ({"search": "optuna"}, "^--trials: .*--search grid"),
        ({"trials": 3}, "^--trials 3: .*grid"),
        ({"metrics": ("psnr.sigma50",)}, "metric psnr.sigma50: .*loss, gradient_norm, loss.l1, psnr.sigma25"),
        ({"metrics": ("miou.sigma25",)}, "metric miou.sigma25: .*evaluate.segmenter"),
        ({"metrics": ()}, "metrics: "),
        ({"reports": 0}, "reports=0: "),
        ({"reports": 700, "scheduler": "asha"}, "reports=700: .*at most 20"),
        ({"reports": 10**9}, "reports=1000000000: .*at most 1000"),
        ({"reports": 7}, "reports=7: .* 6 steps; give at most 6"),
        ({"reports": 4, "scheduler": "asha"}, "reports=4: .* 6 steps; give at most 3"),
        ({"reports": 4, "space": {"train.epochs": [1, 2]}}, "reports=4: .* 3 steps; give at most 3"),
        (
            {"space": {"loss.weight": [1.0], "loss.queue_size": [2, 3]}},
            "space: .*loss.queue_size=2: ",
        ),
        ({"space": {"data.crop_size": [1024]}}, "space: .*data.crop_size=1024"),
        ({"base": {"evaluate.segmenter": "espnet-camvid"}, "metrics": ("miou.sigma25",)}, "espnet-camvid.*weights"),
        ({"scheduler": "pbt", "space": {"loss.queue_size": [8]}}, "loss.queue_size: .*train.lr"),
        ({"space": {"model.name": ["ffdnet", "nowhere:net"]}}, "model.name=nowhere:net cannot be imported"),
        ({"space": {"data.train_split": ["train", "nope"]}}, "data.train_split=nope: .*nope"),
        (
            {"space": {"loss.features": ["squeezenet1_0.fire3", "squeezenet1_0.fire33"], "loss.weight": [1.0]}},
            "loss.features=squeezenet1_0.fire33",
        ),
        (
            {
                "space": {
                    "loss.features": ["efficientnet_lite0.blocks.2", "efficientnet_lite0.blocks.22"],
                    "loss.weight": [1.0],
                    "loss.patch_size": [32],
                }
            },
            "loss.features=efficientnet_lite0.blocks.22",
        ),
        (
            {"space": {"loss.features": ["nowhere:phi"], "loss.weight": [0.0, 1.0]}, "search": "optuna", "trials": 2},
            "loss.features=nowhere:phi",
        ),
        ({"base": {"loss.features": "nowhere:phi"}, "space": {"loss.weight": [0.0, 1.0]}}, "loss.features=nowhere:phi"),
    ],
)
def test_a_wrong_sweep_is_one_line(changes: dict[str, Any], message: str, scenes_root: Path, tmp_path: Path) -> None:
    other = changes.get("base", {})
    sweep = tiny_sweep(scenes_root, tmp_path, **{key: value for key, value in changes.items() if key != "base"})
    with pytest.raises(ValueError, match=message) as caught:
        check(Sweep(**{**vars(sweep), "base": sweep.base.replace(other)}))
    assert "\n" not in str(caught.value)


def test_initial_weights_that_cannot_be_read_are_no_point_that_is_left_out(scenes_root: Path, tmp_path: Path) -> None:
    """But those that do not fit the network of a point are."""
    empty, wide = tmp_path / "empty", tmp_path / "wide"
    empty.mkdir()
    sweep = tiny_sweep(scenes_root, tmp_path)
    bundle_of(wide / checkpoint.name_of(2), sweep.base.replace({"model.width": 12}), step=2)
    space = {"train.init": ["", str(empty)]}
    with pytest.raises(ValueError, match=f"^train.init={empty}: ") as caught:
        check(resolved(replace(sweep, space=space)))
    assert "\n" not in str(caught.value)
    fitting = {"train.init": ["", str(wide)], "model.width": [8, 12]}
    points, excluded, _, _ = check(resolved(replace(sweep, space=fitting)))
    assert [tuple(point.values()) for point in points or []] == [("", 8), ("", 12), (str(wide), 12)]
    assert excluded.startswith(f"1 of 4 combinations left out, such as train.init={wide}: weights of another network")


def test_what_is_left_out_is_said(scenes_root: Path, tmp_path: Path) -> None:
    space = {"loss.weight": [1.0], "loss.queue_size": [8, 64], "loss.patch_size": [None, 32, 40]}
    points, excluded, _, valid = check(tiny_sweep(scenes_root, tmp_path, space=space))
    assert points == [
        {"loss.weight": 1.0, "loss.queue_size": 8, "loss.patch_size": None},
        {"loss.weight": 1.0, "loss.queue_size": 64, "loss.patch_size": None},
        {"loss.weight": 1.0, "loss.queue_size": 64, "loss.patch_size": 32},
    ]
    assert valid == 3 and excluded.startswith("3 of 6 combinations left out, such as loss.queue_size=8: ")


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_large_space_is_not_looked_through(search: str, scenes_root: Path, tmp_path: Path) -> None:
    space = {f"loss.{key}": [value / 100 for value in range(1, 41)] for key in ("weight", "l1", "ssim", "mse")}
    points, excluded, _, valid = check(tiny_sweep(scenes_root, tmp_path, space=space, search=search, trials=4))
    assert (points is None or len(points) == 4) and not excluded
    assert valid is None


def test_optuna_has_no_more_trials_than_the_space_points(scenes_root: Path, tmp_path: Path) -> None:
    sweep = tiny_sweep(scenes_root, tmp_path, search="optuna", trials=16)
    assert "sweep s: 2 trials (16 asked for, but the space has no more)" in _announcement(sweep, check(sweep), 1)


def test_a_sweep_that_was_begun_keeps_its_reports(scenes_root: Path, tmp_path: Path) -> None:
    """Earlier versions took several at the same step."""
    sweep = tiny_sweep(scenes_root, tmp_path, reports=7)
    sweep.folder.mkdir(parents=True)
    (sweep.folder / "sweep.json").touch()
    assert check(sweep).points


def test_a_password_stays_out_of_the_files(scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tiny_sweep(scenes_root, tmp_path)
    inherited = sweep.base.replace({"tracking.uri": ""})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:planted@server/db")
    with pytest.raises(ValueError, match="a sweep writes its tracking URI into files") as caught:
        resolved(Sweep(**{**vars(sweep), "base": inherited}))
    assert "planted" not in str(caught.value)


def test_wrong_words_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    space = tmp_path / "empty.yaml"
    space.write_text("")
    words = ["tune", "--recipe", "demo", "--trials", "2", f"data.root={tmp_path}"]
    assert main([*words, "--space", str(space)]) == 2
    assert "space: " in capsys.readouterr().err
    assert main([*words, "--space", "nothing"]) == 2
    assert "space 'nothing': " in capsys.readouterr().err
    assert main(["tune", "--recipe", "demo", "--trials", "2", "--space", "weights"]) == 2
    assert "data.root: " in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["tune", "table", "study"])
def test_a_typed_layout_stays(verb: str, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photographs in a folder: without the key, data.layout=folder would be found."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, photograph in enumerate(sorted(scenes_root.rglob("*_leftImg8bit.png"))):
        (flat / f"{number}.png").symlink_to(photograph)
    plan, space = tmp_path / "plan.yaml", tmp_path / "space.yaml"
    plan.write_text("settings: {one: {a: {}}}\nobjectives: {L1: {loss.weight: 0}}\n")
    space.write_text("train.lr: [1e-3]\n")
    keys = [f"data.root={flat}", f"train.storage={tmp_path}", "data.layout=cityscapes"]
    words = {
        "tune": ["--recipe", "demo", "--space", str(space), "--search", "grid", "--metric=loss"],
        "table": ["--recipes", "demo"],
        "study": [str(plan)],
    }
    assert main([verb, *words[verb], *keys]) == 2
    said = capsys.readouterr()
    assert "data.layout=folder: found by itself" not in said.out + said.err and "not data.layout=cityscapes" in said.err


def test_keys_that_a_sweep_would_drop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["tune", "--recipe", "demo", "--space", "weights", f"data.root={tmp_path}"]
    assert main([*words, "train.name=first"]) == 2
    assert "train.name=first: " in (said := capsys.readouterr().err) and "--name" in said
    assert main([*words, "tracking.register_as=denoiser"]) == 2
    assert "tracking.register_as=denoiser: " in (said := capsys.readouterr().err) and "--retrain-best" in said
    assert main(["table", "--recipes", "demo", "train.name=first", f"data.root={tmp_path}"]) == 2
    assert "train.name=first: " in capsys.readouterr().err
    assert main(["table", "--recipes", "demo", "--data", "/a", f"data.root={tmp_path}"]) == 2
    assert f"data.root={tmp_path}: --data /a " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("s", "tracking.register_as=a/b", "tracking.register_as='a/b': "),
        ("s", "data.val_split=nope", "split 'nope' "),
        ("s" * 252, "train.epochs=2", "with --retrain-best: train.name='sss"),
    ],
)
def test_what_the_training_after_a_sweep_needs_is_checked_before(
    name: str, key: str, message: str, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("train.lr: [1e-3]\n")
    words = ["tune", "--recipe", "demo", "--space", str(space), "--search", "grid", "--metric=loss", "--retrain-best",
             "--name", name, f"data.root={scenes_root}", f"train.storage={tmp_path}", key]  # fmt: skip
    assert main(words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / name).exists()


def test_epochs_are_asked_for_in_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("train.epochs: [1, 2]\n")
    words = ["tune", "--recipe", "demo", "--space", str(space), "--trials", "2", f"data.root={tmp_path}"]
    assert main([*words, "--trial-epochs", "4"]) == 2
    assert "--trial-epochs 4: " in (said := capsys.readouterr().err) and str(space) in said


@pytest.mark.slow
def test_what_mlflow_lacks_of_a_trial_is_sent_by_the_same_command_or_said(
    ray_session: None, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a table's runs; an exit code too."""
    space, config = tmp_path / "space.yaml", tmp_path / "config.yaml"
    space.write_text("train.lr: [1e-3]\n")
    client = MlflowClient(new_store(tmp_path))
    tiny_base(scenes_root, tmp_path, train__name="", train__max_steps=1).save(config)
    words = ["tune", "--config", str(config), "--space", str(space), "--search", "grid", "--scheduler", "none",
             "--name", "s", "--metric", "loss.l1", "--reports", "1", "--quiet"]  # fmt: skip
    assert main(words) == 0
    folder = RunFolder.at(tmp_path / "s" / "000")
    run_id = folder.read_info()["run_id"]

    def wait() -> None:
        with tracking.reopen(run_id, uri="http://127.0.0.1:9", run_dir=folder.path, page="", step=1) as away:
            away.results({"psnr.sigma25": 27.0})
        assert (folder.path / UNSENT).exists()

    wait()
    assert main(words) == 0
    assert client.get_run(run_id).data.metrics["psnr.sigma25"] == 27 and not (folder.path / UNSENT).exists()
    wait()
    client.delete_run(run_id)
    capsys.readouterr()
    assert main(words) == 1
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("d2sm: trial 000: ") and run_id in line for line in said)
    assert any(line.startswith("d2sm: s: how the trials ended could not be written") for line in said)


def test_the_runs_of_a_trial_are_its_own(scenes_root: Path, tmp_path: Path) -> None:
    sweep = tiny_sweep(scenes_root, tmp_path)
    for name in ("100", "100-from-001-1", "1000"):
        (sweep.folder / name).mkdir(parents=True)
    found = mlflow_run._runs_of(sweep, TrialSummary(100, {}, "finished", 1, 1, {}))
    assert [folder.path.name for folder in found] == ["100", "100-from-001-1"]


def test_what_mlflow_refused_of_a_trial_is_said_once(scenes_root: Path, tmp_path: Path) -> None:
    sweep = tiny_sweep(scenes_root, tmp_path)
    for number in range(3):
        (sweep.folder / f"00{number}").mkdir(parents=True)
    said, new = sweep.folder / "000" / REFUSED, sweep.folder / "001" / REFUSED
    said.write_text("{}\n")
    before = mlflow_run.refused(sweep)
    new.write_text("{}\n")
    found = [TrialSummary(number, {}, "finished", 1, 1, {}) for number in range(3)]
    left = mlflow_run.send_waiting(sweep, found, before)
    assert list(left) == ["trial 001"] and str(new) in left["trial 001"]
    assert mlflow_run.send_waiting(sweep, found, mlflow_run.refused(sweep)) == {}


@pytest.mark.long  # MLflow is waited for at the end of the training and of the evaluation
def test_the_best_is_retrained_and_what_mlflow_lacks_is_an_exit_code(
    ray_session: None, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of any training: here its files wait, since the place for those of new runs is no folder."""
    space = tmp_path / "space.yaml"
    space.write_text("train.lr: [1e-3]\n")
    new_store(tmp_path)
    config = tmp_path / "config.yaml"
    tiny_base(scenes_root, tmp_path, evaluate__pictures=0, train__name="").save(config)
    words = ["tune", "--config", str(config), "--space", str(space), "--search", "grid", "--scheduler", "none",
             "--name", "s", "--metric", "loss.l1", "--reports", "1", "--quiet"]  # fmt: skip
    assert main(words) == 0
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        store.execute("update experiments set artifact_location = ?", (f"{space.as_uri()}/artifacts",))
    capsys.readouterr()
    assert main([*words, "--retrain-best"]) == 1
    out, err = capsys.readouterr()
    assert f"checkpoint {tmp_path / 's-best'}" in out and f"records wait in {tmp_path / 's-best'}" in err


def test_settings_are_json(scenes_root: Path, tmp_path: Path) -> None:
    facts = tiny_sweep(scenes_root, tmp_path, space={"loss.patch_size": [None, 32]}).settings()
    assert json.loads(json.dumps(facts)) == facts
