"""Runs on a real cluster of several nodes that lose something, against one that lost nothing: bit for bit the same.

Each test prints how long the run stood still (`make test-long` shows it). The runs are short and the machine is small,
so most of that is the start of processes.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipelines.runs import checkpoint
from tests.helpers.equality import equal
from tests.helpers.local_cluster import LocalCluster
from tests.helpers.mlflow_server import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
STEPS, EVERY = 360, 10
RUN = [
    "model.width=8", "model.depth=3", "data.crop_size=64", "data.crops_per_image=4", "data.shuffle_images=6",
    "train.batch_size=8", f"train.epochs={STEPS // 3}", f"train.checkpoint_every={EVERY}", "train.log_every=5",
    "train.lr=1e-3", "train.warmup_steps=0", "train.schedule=constant", "train.max_failures=9",
    "train.num_workers=2", "train.cpus_per_worker=0.5", "evaluate.segmenter=null",
    "loss.features=squeezenet1_0.fire3", "loss.features_weights=random", "loss.queue_size=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(cluster: LocalCluster, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that lost nothing."""
    storage = tmp_path_factory.mktemp("undisturbed")
    Training(cluster, scenes_root, storage, "whole").finish()
    return storage / "whole"


@pytest.fixture(autouse=True)
def drivers_end() -> Iterator[None]:
    """A run that a failed test leaves behind would keep its places from the next one's."""
    yield
    for process in Training.drivers:
        process.kill()
        process.wait()
    Training.drivers.clear()


class Training:
    """`d2sm train` on the cluster, what it prints, and what it leaves."""

    drivers: ClassVar[list[subprocess.Popen[str]]] = []

    def __init__(self, cluster: LocalCluster, root: Path, storage: Path, name: str, *words: str, **env: str) -> None:
        self.cluster, self.folder, self.database = cluster, storage / name, storage / "mlflow.db"
        self.words = ["train", "--no-evaluate", "--recipe", "ffdnet_d2sm_cpu", f"data.root={root}"]
        self.words += [f"train.storage={storage}", f"train.name={name}", *RUN, *words]
        self.env = {"RAY_ADDRESS": cluster.state.address, "RAY_AUTH_MODE": "token", **env}
        self.lost = 0.0
        self.start()

    def start(self) -> None:
        self.said: list[str] = []
        self.process = self.cluster.start(*self.words, **self.env)
        self.drivers.append(self.process)
        assert self.process.stderr is not None
        self.thread = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self.thread.start()
        threading.Thread(target=lambda: [None for _ in self.process.stdout or ()], daemon=True).start()

    def _listen(self, stream: Any) -> None:
        for line in stream:
            self.said.append(line)

    @property
    def step(self) -> int:
        """Of the newest complete checkpoint."""
        last = checkpoint.latest(self.folder) if self.folder.exists() else None
        return int(checkpoint.meta(last)["step"]) if last else 0

    def reach(self, step: int, seconds: float = 240) -> None:
        self.until(lambda: self.step >= step, seconds)

    def until(self, reached: Callable[[], bool], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None and time.monotonic() < end, "".join(self.said)
            time.sleep(0.1)

    def finish(self, code: int = 0, seconds: float = 400) -> str:
        """Wait for its end; gives all that it said, and adds up what it lost."""
        try:
            assert self.process.wait(seconds) == code, "".join(self.said)
        finally:
            self.process.kill()
        self.thread.join(10)
        said = "".join(self.said)
        self.lost += sum(map(float, re.findall(r"(\d+) s lost", said)))
        return said

    @property
    def losses(self) -> list[tuple[int, float]]:
        return logged(self.database, self.folder.name)


def logged(database: Path, name: str) -> list[tuple[int, float]]:
    with sqlite3.connect(database) as store:
        query = "select step, value from metrics join runs using (run_uuid) where key = 'loss' and name = ?"
        return sorted(store.execute(query, (name,)))


def same(folder: Path, whole: Path) -> None:
    """The same weights, training state and history as the run that lost nothing."""
    ours, theirs = checkpoint.resolve(folder), checkpoint.resolve(whole)
    assert ours.name == theirs.name == checkpoint.name_of(STEPS)
    assert equal(load_file(ours / checkpoint.MODEL), load_file(theirs / checkpoint.MODEL))
    a, b = checkpoint.load_state(ours), checkpoint.load_state(theirs)
    assert not [part for part in a if not equal(a[part], b[part])]
    assert not [path for path in folder.glob("*step-*") if not checkpoint.is_complete(path)]


def history(training: Training, whole: Path) -> None:
    assert training.losses == logged(whole.parent / "mlflow.db", "whole")
    assert [step for step, _ in training.losses] == list(range(5, STEPS + 1, 5))


def report(what: str, seconds: float) -> None:
    print(f"\n  {what}: {seconds:.0f} s lost", flush=True)


def test_a_worker_killed(cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path) -> None:
    run = Training(cluster, scenes_root, tmp_path, "worker")
    run.reach(30)
    cluster.processes("RayTrainWorker")[0].kill()
    said = run.finish()
    assert "restarted at step" in said and "Traceback" not in said
    same(run.folder, undisturbed)
    history(run, undisturbed)
    report("a worker killed", run.lost)


def test_a_node_killed_with_a_worker_on_it(
    cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path
) -> None:
    run = Training(cluster, scenes_root, tmp_path, "node", "train.cpus_per_worker=1", "train.data_cpus=0.5")
    run.reach(30)
    node = max(map(cluster.node_of, cluster.processes("RayTrainWorker")))
    assert node > 0  # not the head's
    cluster.d2sm("cluster", "kill", str(node))
    cluster.d2sm("cluster", "add", "--cpus", "1")
    said = run.finish()
    assert "restarted at step" in said
    same(run.folder, undisturbed)
    history(run, undisturbed)
    report("a node killed, another added", run.lost)


def test_the_driver_killed(cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path) -> None:
    run = Training(cluster, scenes_root, tmp_path, "driver")
    run.reach(30)
    run.process.kill()
    killed = time.monotonic()
    gone(cluster, "RayTrainWorker")
    assert run.step < STEPS
    reached = run.step
    run.start()
    run.reach(reached + EVERY)
    report("the driver killed, the same command again", time.monotonic() - killed)
    run.finish()
    same(run.folder, undisturbed)
    history(run, undisturbed)


def gone(cluster: LocalCluster, name: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while cluster.processes(name):
        assert time.monotonic() < end, f"{name} still lives"
        time.sleep(0.2)


def test_the_tracking_server_away_for_half_a_minute(
    cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path
) -> None:
    with Server(tmp_path) as server:
        run = Training(cluster, scenes_root, tmp_path, "server", f"tracking.uri={server.uri}", "train.epochs=800")
        run.reach(30)
        server.kill()
        before = run.step
        time.sleep(30)
        assert run.step > before  # training has not waited
        server.start()
        run.finish()
    assert [step for step, _ in run.losses] == list(range(5, 2401, 5))
    assert run.losses[: STEPS // 5] == logged(undisturbed.parent / "mlflow.db", "whole")
    report("the tracking server away for 30 s", run.lost)


FILL = """
import sys, time, numpy, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=0)
class Filler:
    def fill(self):
        self.kept = [ray.put(numpy.ones(64 * 2**20, numpy.uint8)) for _ in range(12)]  # 768 MiB into 512
fillers = [Filler.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote()
           for node in ray.nodes() if node["Alive"]]
ray.get([filler.fill.remote() for filler in fillers])
print("full", flush=True)
time.sleep(15)
"""


def test_the_object_store_filled(cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path) -> None:
    """Somebody else's objects fill every node's store and more; ours are spilled or wait, and none is lost."""
    run = Training(cluster, scenes_root, tmp_path, "store")
    run.reach(20)
    words = [os.sys.executable, "-c", FILL]  # type: ignore[attr-defined]
    environment = cluster.environment | run.env
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as filler:
        assert filler.stdout is not None and filler.stdout.readline() == "full\n"
        run.finish()
        filler.kill()
    same(run.folder, undisturbed)
    history(run, undisturbed)
    report("the object stores filled", run.lost)


def test_ctrl_c_once_and_twice(cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path) -> None:
    """Once: a checkpoint of the very step, far from the next that was due. Twice: at once, nothing half-written."""
    run = Training(cluster, scenes_root, tmp_path, "once", "train.checkpoint_every=1000")
    run.until(lambda: len(run.losses) > 3 if run.database.exists() else False)
    run.process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    said = run.finish(code=130)
    took = time.monotonic() - asked
    assert "ends after this step, with a checkpoint" in said and "Traceback" not in said
    assert 0 < run.step < STEPS and run.step % 1000
    gone(cluster, "RayTrainWorker")
    assert status(run.database, "once") == "KILLED"
    run.start()
    run.finish()
    same(run.folder, undisturbed)
    history(run, undisturbed)
    twice = Training(cluster, scenes_root, tmp_path, "twice")
    twice.reach(10)
    twice.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    twice.process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    twice.finish(code=130, seconds=30)
    at_once = time.monotonic() - asked
    gone(cluster, "RayTrainWorker")
    assert status(twice.database, "twice") == "KILLED"
    twice.start()
    twice.finish()
    same(twice.folder, undisturbed)
    print(f"\n  Ctrl-C once: {took:.1f} s with its checkpoint; twice: {at_once:.1f} s", flush=True)


def status(database: Path, name: str) -> str:
    with sqlite3.connect(database) as store:
        return str(store.execute("select status from runs where name = ?", (name,)).fetchone()[0])


def test_fewer_workers_and_more_again(
    cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path
) -> None:
    """[1, 3] workers on three nodes of one CPU: a node is lost, and one comes. The crops are the same, in the same
    order; sums over workers are in another order, so the weights agree to rounding.

    Larger batches and not a larger network, which would make the steps as slow (a node needs time to come): a width of
    32 and depth of 6 let that rounding grow, at this learning rate, to a tensor's whole deviation within 120 steps, on
    one and on two workers of which none was lost."""
    slower = ["train.epochs=160", "train.batch_size=32", "data.crops_per_image=16", "data.crop_size=96"]
    fixed = Training(cluster, scenes_root, tmp_path, "fixed", *slower)
    fixed.finish()
    elastic = ["train.num_workers=[1,3]", "train.cpus_per_worker=1"]
    run = Training(cluster, scenes_root, tmp_path, "elastic", *slower, *elastic)
    run.reach(30)
    run.until(lambda: len(cluster.processes("RayTrainWorker")) == 3)  # two while Ray still counts the run before
    run.reach(run.step + EVERY)
    node = max(map(cluster.node_of, cluster.processes("RayTrainWorker")))
    cluster.d2sm("cluster", "kill", str(node))
    run.until(lambda: any("on 2 workers instead of 3" in line for line in run.said))
    reached = run.step
    run.reach(reached + 2 * EVERY)
    assert len(cluster.processes("RayTrainWorker")) == 2
    cluster.d2sm("cluster", "add", "--cpus", "1")
    run.until(lambda: any("on 3 workers instead of 2" in line for line in run.said))
    run.finish()
    assert [step for step, _ in run.losses] == list(range(5, 481, 5))
    for (step, ours), (_, theirs) in zip(run.losses, fixed.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=0.01), step
    ours, theirs = (load_file(checkpoint.resolve(one.folder) / checkpoint.MODEL) for one in (run, fixed))
    away = max(float((ours[name] - theirs[name]).abs().max() / theirs[name].std()) for name in theirs)
    print(f"\n  largest difference to a run of two workers: {away:.1e} of a tensor's deviation")
    assert away < 0.02
    report("a node lost and one added, elastic", run.lost)


def test_chaos(cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path) -> None:
    """Workers, a node and the driver, one after the other."""
    run = Training(cluster, scenes_root, tmp_path, "chaos", "train.data_cpus=0.5")
    lines = []

    def worker() -> None:
        cluster.processes("RayTrainWorker")[-1].kill()

    def node() -> None:
        cluster.d2sm("cluster", "kill", "1")
        cluster.d2sm("cluster", "add", "--cpus", "1")

    def driver() -> None:
        run.process.kill()
        gone(cluster, "RayTrainWorker")
        run.finish(code=-signal.SIGKILL)
        run.start()

    since = time.monotonic()
    for kill, at in ((worker, 40), (node, 120), (driver, 200), (worker, 280)):
        run.reach(at)
        run.until(lambda: bool(cluster.processes("RayTrainWorker")))  # those before may just have been killed
        lines.append(f"{time.monotonic() - since:5.0f} s  step {run.step:3d}  {kill.__name__} killed")
        kill()
    run.finish()
    lines.append(f"{time.monotonic() - since:5.0f} s  step {run.step:3d}  finished")
    same(run.folder, undisturbed)
    history(run, undisturbed)
    print("\n  " + "\n  ".join(lines), flush=True)
    report("chaos", run.lost)


def test_as_a_new_user(cluster: LocalCluster, undisturbed: Path, scenes_root: Path, tmp_path: Path) -> None:
    """Send a run, watch it, kill a node under it, see it finish, look the model up."""
    words = ["--recipe", "ffdnet_d2sm_cpu", f"data.root={scenes_root}", f"train.storage={tmp_path}", "train.name=sent"]
    words += [*RUN, "train.data_cpus=0.5", "evaluate.sigmas=[25]", "tracking.register_as=streets"]
    words += ["tracking.alias=champion", "evaluate.pictures=0"]
    since = time.monotonic()
    watching = cluster.start("submit", "--", "train", *words)
    folder, lines = tmp_path / "sent", []
    end = since + 300
    while not checkpoint.latest(folder) and time.monotonic() < end:
        assert watching.poll() is None, watching.communicate()
        time.sleep(0.2)
    node = max(map(cluster.node_of, cluster.processes("RayTrainWorker")))
    lines.append(cluster.d2sm("cluster", "kill", str(max(1, node)))[0].strip())
    cluster.d2sm("cluster", "add", "--cpus", "1")
    out, err = watching.communicate(timeout=400)
    assert watching.returncode == 0, out + err
    assert "registered streets version 1 champion" in out and "succeeded after" in err
    shown, _ = cluster.d2sm("models", "show", "streets@champion", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert "ffdnet_d2sm_cpu" in shown
    weights = load_file(checkpoint.resolve(folder) / checkpoint.MODEL)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    same(folder, undisturbed)
    print(f"\n  {time.monotonic() - since:.0f} s in all; {lines[0]}\n{out}", flush=True)


def test_nothing_is_left(cluster: LocalCluster) -> None:
    cluster.d2sm("cluster", "down")
    assert not [process for process in psutil.process_iter() if str(cluster.folder) in " ".join(_words(process))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
