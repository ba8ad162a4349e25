"""Real runs on Ray Train: stopping and resuming, what can go wrong, and what is left in the run's folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from safetensors.torch import load_file

from pipelines.config import ConfigError
from pipelines.data.index import DataError
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import session
from pipelines.runtime.resources import ResourceError
from pipelines.tracking import store
from pipelines.tracking.store import TrackingError
from pipelines.train import Trained, fit
from pipelines.training import launch, loop
from pipelines.training.finite import TrainingError
from pipelines.training.messages import WorkerTask
from tests.conftest import tiny_config
from tests.helpers.equality import equal, same_run
from tests.helpers.mlflow_server import free_port
from tests.helpers.stores import new_store

# With everything that is part of a training state: EMA, clipping, schedule, queues, a discriminator.
LONG = {"loss__adversarial": 0.01, "train__ema": 0.9, "train__clip": 1.0, "train__schedule": "cosine",
        "train__warmup_steps": 1, "train__log_every": 2, "train__checkpoint_every": 2}  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage for the runs of this file, which share a tracking store."""
    folder = tmp_path_factory.mktemp("runs")
    new_store(folder)
    return folder


@pytest.fixture(scope="module")
def two(ray_session: None, scenes_root: Path, storage: Path) -> tuple[Trained, Trained]:
    """Two runs on two workers each, side by side: six steps in one go, and one that is stopped after four."""
    config = tiny_config(scenes_root, storage, train__name="whole2", **LONG)
    with ThreadPoolExecutor(2) as pool:
        whole, stopped = pool.map(
            lambda changes: fit(config.replace(changes), quiet=True),
            [{}, {"train.name": "parts2", "train.max_steps": 4}],
        )
    return whole, stopped


@pytest.fixture(scope="module")
def whole(two: tuple[Trained, Trained]) -> Trained:
    return two[0]


def logged(trained: Trained, metric: str = "loss") -> list[tuple[int, float]]:
    history = store.client(trained.uri).get_metric_history(trained.run_id, metric)
    return sorted((point.step, point.value) for point in history)


@pytest.mark.slow
def test_stopped_and_resumed_equals_not_stopped_on_two_workers(
    two: tuple[Trained, Trained], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 4 lies within an epoch and within an ingest task."""
    whole, stopped = two
    config = whole.config.replace({"train.name": "parts2"})
    assert stopped.step == 4
    capsys.readouterr()
    resumed = fit(config)
    shown = capsys.readouterr().err
    assert "parts2: resuming at step 4 of 6" in shown and "data_wait=" in shown
    same_run(whole, resumed)
    assert resumed.run_id == stopped.run_id != whole.run_id
    assert [step for step, _ in logged(resumed)] == [2, 4, 6]
    assert logged(resumed) == logged(whole)
    runs = store.client(resumed.uri).search_runs(
        [store.client(resumed.uri).get_experiment_by_name("d2sm").experiment_id],
        filter_string="attributes.run_name = 'parts2'",
    )
    assert [run.info.status for run in runs] == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.long
def test_stopped_and_resumed_equals_not_stopped_on_one_worker(whole: Trained) -> None:
    alone = whole.config.replace({"train.num_workers": 1, "train.name": "whole1"})
    config = alone.replace({"train.name": "parts1"})
    fit(config.replace({"train.max_steps": 4}), quiet=True)
    one = fit(alone, quiet=True)
    same_run(one, fit(config, quiet=True))
    for (step, ours), (_, theirs) in zip(logged(one), logged(whole), strict=True):  # what is logged is all workers'
        assert ours == pytest.approx(theirs, rel=1e-3), step


def test_too_little_memory_is_one_line(
    ray_session: None, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(task: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nSee the documentation")

    monkeypatch.setattr(loop, "train", fails)
    config = tiny_config(scenes_root, tmp_path, train__num_workers=0)
    with pytest.raises(
        TrainingError, match=r": too little memory: .*9\.00 GiB.*train.accumulate.*queue_size$"
    ) as error:
        fit(config, quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_without_workers_as_with_one(whole: Trained) -> None:
    """Stopped and resumed in this process, which keeps its threads and its random numbers."""
    one = whole.config.replace({"train.num_workers": 1, "train.name": "one"})
    local = one.replace({"train.num_workers": 0, "train.name": "local"})
    process = torch.get_num_threads(), torch.initial_seed()
    fit(local.replace({"train.max_steps": 4}), quiet=True)
    with launch._here, pytest.raises(TrainingError, match=r"local: train.num_workers=0: this process trains another"):
        fit(local, quiet=True)
    resumed = fit(local, quiet=True)
    assert (torch.get_num_threads(), torch.initial_seed()) == process
    alone = fit(one, quiet=True)
    same_run(alone, resumed)
    assert logged(alone) == logged(resumed)


@pytest.mark.slow
def test_what_a_run_leaves(whole: Trained) -> None:
    steps = sorted(path.name for path in whole.run_dir.glob("step-*"))
    assert steps == ["step-00000004", "step-00000006"]  # train.keep=2
    meta = checkpoint.meta(whole.checkpoint)
    assert (meta["step"], meta["epoch"], meta["final"]) == (6, 2, True)
    assert not any("features" in name or "phi" in name for name in checkpoint.load_state(whole.checkpoint)["objective"])
    state = checkpoint.load_state(whole.checkpoint)
    assert not equal(state["model"], load_file(whole.checkpoint / checkpoint.MODEL))  # the EMA is saved as the model
    assert all(math.isfinite(value) for value in whole.metrics.values())
    params = store.client(whole.uri).get_run(whole.run_id).data.params
    assert params["loss.queue_size"] == "32"
    assert len(params) == len(whole.config.flat())


@pytest.mark.slow
def test_a_finished_run_trains_no_further(whole: Trained) -> None:
    again = fit(whole.config, quiet=True)
    assert (again.step, again.run_id, again.checkpoint) == (6, whole.run_id, whole.checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("key, value", [("train.lr", 5e-4), ("loss.weight", 0.5), ("noise.sigma", [0, 50])])
def test_another_configuration_under_the_same_name(whole: Trained, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=.*whole2") as error:
        fit(whole.config.replace({key: value}), quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_other_data_under_the_same_name(whole: Trained, scenes_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    for path in sorted(root.glob("leftImg8bit/train/*/*"))[:1] + sorted(root.glob("gtFine/train/*/*"))[:1]:
        path.unlink()
    with pytest.raises(ConfigError, match="whole2.*other data"):
        fit(whole.config.replace({"data.root": str(root)}), quiet=True)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(
    ray_session: None, scenes_root: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, whatever train.max_failures: a restart from the same checkpoint would hit it again."""
    config = tiny_config(
        scenes_root, storage, train__name="nan", train__lr=1e30, train__num_workers=1, train__checkpoint_every=1,
        train__max_failures=2,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"^nan: step 1: .*train.lr") as error:
        fit(config)
    assert "\n" not in str(error.value)
    assert "restarted" not in capsys.readouterr().err
    last = checkpoint.latest(storage / "nan")
    assert last is not None and last.name == "step-00000001"
    weights = load_file(last / checkpoint.MODEL)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.long
def test_bad_images_are_skipped_and_listed(ray_session: None, scenes_root: Path, storage: Path, tmp_path: Path) -> None:
    """A plain folder, L1 alone: one file is cut short (seen from its end), one damaged within (seen on reading)."""
    root = tmp_path / "photos"
    root.mkdir()
    for number, path in enumerate(sorted(scenes_root.glob("leftImg8bit/train/*/*.png"))):
        shutil.copy(path, root / f"{number}.png")
    short, damaged = root / "0.png", root / "1.png"
    short.write_bytes(short.read_bytes()[:-500])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged.write_bytes(bytes(data))
    stop = tiny_config(root, storage, train__name="stop", train__num_workers=1, loss__weight=0, data__layout="folder")
    with pytest.raises(DataError, match=f"{short}: is truncated"):
        fit(stop, quiet=True)
    short.rename(tmp_path / "short.png")
    with pytest.raises(TrainingError, match=f"{damaged}: is damaged") as error:
        fit(stop, quiet=True)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)
    (tmp_path / "short.png").rename(short)
    config = tiny_config(
        root, storage, train__name="skip", train__num_workers=1, loss__weight=0, data__layout="folder",
        train__epochs=1, data__bad_images="skip",
    )  # fmt: skip
    trained = fit(config, quiet=True)
    assert trained.step == 2  # ten crops of the five files that look whole
    listed = json.loads((trained.run_dir / "skipped.json").read_text())
    assert {name: str(root / f"{name}.png") in why for name, why in listed.items()} == {"0": True, "1": True}
    tags = store.client(trained.uri).get_run(trained.run_id).data.tags
    assert tags["d2sm.skipped_images"] == "2"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.long
def test_a_full_disk_leaves_the_former_checkpoint(
    ray_session: None, scenes_root: Path, storage: Path, small_disk: Path
) -> None:
    config = tiny_config(
        scenes_root, small_disk, train__name="full", train__num_workers=1, train__checkpoint_every=1, train__keep=9,
        tracking__uri=f"sqlite:///{storage}/mlflow.db",
    )  # fmt: skip
    with pytest.raises((TrainingError, OSError), match="(?i)no space") as error:
        fit(config, quiet=True)
    assert "\n" not in str(error.value)
    last = checkpoint.latest(small_disk / "full")
    assert last is not None
    checkpoint.load_model(last)
    step = checkpoint.meta(last)["step"]
    assert 1 <= step < 6
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert fit(config, quiet=True).step == 6


def test_more_workers_than_the_cluster_has(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    workers = int(ray.cluster_resources()["CPU"]) * 2
    config = tiny_config(
        scenes_root, tmp_path, train__num_workers=workers, train__batch_size=workers, loss__queue_size=workers,
        data__crops_per_image=workers,
    )  # fmt: skip
    with pytest.raises(ResourceError, match=rf"train.num_workers={workers}: .*RAY_ADDRESS") as error:
        fit(config, quiet=True)
    assert "\n" not in str(error.value)
    gpus = config.replace({"train.num_workers": 1, "train.use_gpu": True})
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="train.use_gpu=true"):
            fit(gpus, quiet=True)


def test_no_actor_asks_the_dashboard_of_another_cluster(
    ray_session: None, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray of our own has no dashboard; a cluster has, and there the actor stays."""
    config = tiny_config(scenes_root, tmp_path)
    task = WorkerTask(config, RunFolder.of(config), steps=1, steps_per_epoch=1, meta={}, messages=None)

    def callbacks() -> set[str]:
        return {type(each).__name__ for each in launch._trainer(task, pa.table({}))._create_default_callbacks()}

    assert "PlacementGroupCleanerCallback" not in callbacks()
    monkeypatch.setattr(session, "started_here", lambda: False)
    assert "PlacementGroupCleanerCallback" in callbacks()


def test_a_tracking_server_that_does_not_answer(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=uri) as error:
        fit(tiny_config(scenes_root, tmp_path, tracking__uri=uri), quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden"])
def test_a_run_name_is_a_plain_name(scenes_root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="train.name"):
        fit(tiny_config(scenes_root, tmp_path, train__name=name), quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_patch_that_is_no_multiple_of_the_stride(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, loss__patch_size=2, loss__queue_size=4096)
    with pytest.raises(ConfigError, match=r"loss.patch_size=2: .*squeezenet1_0.fire3.* 4"):
        fit(config, quiet=True)
    assert not list(tmp_path.iterdir())
