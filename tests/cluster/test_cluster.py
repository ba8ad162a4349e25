"""Three Ray nodes on this machine, jobs on them, the preflight, and nothing left behind."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from cluster import nodes
from tests.foreign import tiny_network
from tests.helpers.local_cluster import TOKEN, LocalCluster, interrupt_after

pytestmark = pytest.mark.slow
SMALL = ["--recipe", "ffdnet_l1_cpu", "model.width=8", "model.depth=3", "data.crop_size=64", "train.batch_size=4",
         "train.num_workers=1", "train.cpus_per_worker=1", "evaluate.segmenter="]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    quick = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}  # to miss a killed node
    with LocalCluster(
        tmp_path_factory.mktemp("cluster"), nodes=3, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="60", **quick
    ) as running:
        yield running


@dataclass
class Sent:
    """A job with a user's network, that `submit` follows while other tests run; its output in a file."""

    process: subprocess.Popen[str]
    output: Path
    storage: Path


@pytest.fixture(scope="module")
def sent(cluster: LocalCluster, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """The network is named on the command line of a folder that no node looks into."""
    folder = tmp_path_factory.mktemp("sent")
    (cluster.folder / "mynet.py").write_text(Path(tiny_network.__file__).read_text())
    words = ["train", *SMALL[:2], *SMALL[4:], f"data.root={scenes_root}", f"train.storage={folder}/runs"]
    words += ["train.name=mine", "train.max_steps=2", "model.name=mynet:TinyNetwork", "model.options.width=6"]
    with (folder / "output").open("w") as output:
        process = cluster.start("submit", "--", *words, output=output)
        yield Sent(process, folder / "output", folder / "runs")
        process.kill()
    (cluster.folder / "mynet.py").unlink()


@pytest.mark.usefixtures("sent")
def test_three_nodes_are_up(cluster: LocalCluster) -> None:
    out, _ = cluster.d2sm("cluster", "status")
    assert "3 of 3 nodes alive" in out and out.count("worker") == 2
    _, err = cluster.d2sm("cluster", "up", code=2)
    assert "already up" in err and "`d2sm cluster down`" in err and err.count("\n") == 1
    assert TOKEN not in Path(cluster.environment["D2SM_CLUSTER"]).read_text()


def test_its_dashboard_is_on_loopback_and_asks_for_the_token(cluster: LocalCluster) -> None:
    state = cluster.state
    port = int(state.dashboard.rpartition(":")[2])
    hosts = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert hosts == {"127.0.0.1"}
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{state.dashboard}/api/jobs/", timeout=10)
    assert error.value.code == 401
    _, err = cluster.d2sm("jobs", "list", code=2, RAY_AUTH_TOKEN="another")
    assert "refuses this token" in err and err.count("\n") == 1


def test_a_job_and_what_is_told_of_it(cluster: LocalCluster, tmp_path: Path) -> None:
    size = ["--train", "1", "--val", "1", "--height", "64", "--width", "96"]
    out, err = cluster.d2sm("submit", "--", "scenes", str(tmp_path / "streets"), *size)
    begun, done = out.splitlines()[-2:]  # a job that waits for its turn says so first
    assert begun == "d2sm: drawing 2 scenes of 96x64 pixels" and done.endswith(f"data.root={tmp_path}/streets")
    assert "succeeded after" in err and len(err.splitlines()) == 2, err
    job = err.split()[2]
    assert len(list((tmp_path / "streets").rglob("*_leftImg8bit.png"))) == 2
    listed, _ = cluster.d2sm("jobs", "list")
    assert job in listed and "SUCCEEDED" in listed
    assert cluster.d2sm("jobs", "logs", job) == (f"{begun}\n{done}\n", "")
    _, err = cluster.d2sm("jobs", "logs", job + "x", code=2)
    assert f"no such job at {cluster.state.dashboard}; did you mean {job}?" in err


def test_a_job_that_fails_says_so(cluster: LocalCluster, scenes_root: Path) -> None:
    out, err = cluster.d2sm("submit", "--", "scenes", str(scenes_root), "--seed", "9", code=2)
    assert str(scenes_root) in out and "failed with exit code 2" in err


def test_what_is_wrong_is_seen_before_anything_is_sent(cluster: LocalCluster) -> None:
    _, err = cluster.d2sm("submit", "--", "train", *SMALL, "data.root=/data", code=2)
    assert "train.storage=runs: " in err and err.count("\n") == 1
    _, err = cluster.d2sm("submit", "--", "scenes", f"/tmp/{TOKEN}", code=2)
    assert "secret" in err


REPORT = """
import ray
from ray.core.generated import autoscaler_pb2
ray.init(logging_level="ERROR", log_to_driver=False)
config = autoscaler_pb2.ClusterConfig()
group = config.node_group_configs.add()
group.name, group.max_count = "cpu", 4
group.resources["CPU"] = 8
ray._private.worker.global_worker.gcs_client.report_cluster_config(config.SerializeToString())
"""


def _changed(words: Sequence[str], *changes: str) -> list[str]:
    """A command line with other values of some keys."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(word for word in words if word.partition("=")[0] not in keys), *changes]


def test_the_preflight(cluster: LocalCluster, scenes_root: Path, tmp_path: Path) -> None:
    """With a group of nodes to autoscale to, of which the cluster is told as KubeRay's autoscaler tells it."""
    joined = {"RAY_ADDRESS": cluster.state.address, "RAY_AUTH_MODE": "token"}
    subprocess.run([sys.executable, "-c", REPORT], env=cluster.environment | joined, check=True)
    good = [*SMALL, f"data.root={scenes_root}", f"train.storage={tmp_path}/runs"]
    out, _ = cluster.d2sm("check", *_changed(good, "train.num_workers=4"), **joined)
    names = [line.split()[1] for line in out.splitlines() if line.startswith("ok ")]
    assert sorted(names) == ["data", "degrade", "evaluation", "model", "nodes", "resources", "run", "segmenter",
                             "storage", "tracking", "versions", "weights"]  # fmt: skip
    assert "3 answer" in out
    assert "4 workers x 1 CPU + 1 CPU for data; there are 3 CPU, up to 32 CPU by autoscaling" in out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    bad = ["train.num_workers=40", "train.batch_size=40", "data.root=/nowhere", f"train.storage={tmp_path}/file",
           "tracking.uri=http://127.0.0.1:9", "evaluate.segmenter=espnet-camvid"]  # fmt: skip
    del joined["RAY_AUTH_MODE"]  # the token is offered of itself
    out, _ = cluster.d2sm("check", *_changed(good, *bad), code=1, **joined)
    lines = dict(line.split(maxsplit=2)[1:] for line in out.splitlines() if line.startswith("FAILED"))
    assert set(lines) == {"data", "evaluation", "storage", "tracking", "segmenter", "resources", "weights"}
    assert "41 CPUs" in lines["resources"] and "32" in lines["resources"]
    assert "/nowhere: does not exist" in lines["data"]
    assert "Not a directory" in lines["storage"] and "train.storage" in lines["storage"]
    assert "does not answer" in lines["tracking"] and "needs weights" in lines["weights"]


@pytest.mark.long
def test_a_run_is_left_found_again_and_stopped(cluster: LocalCluster, scenes_root: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the watching alone; a stop is a Ctrl-C to the run; the token is nowhere in what either leaves."""
    words = ["train", "--no-evaluate", *SMALL, f"data.root={scenes_root}", f"train.storage={tmp_path}"]
    words += ["train.name=long", "train.epochs=5000", "train.checkpoint_every=2", "train.log_every=2"]
    job, _ = cluster.d2sm("submit", "--detach", "--", *words)
    job = job.strip()
    following = cluster.start("jobs", "logs", "--follow", job)
    out, err = interrupt_after(following, "ok      weights")
    assert following.returncode == 130 and f"d2sm jobs wait {job} --address {cluster.state.dashboard}" in err
    assert "Traceback" not in err and "Running entrypoint" not in out
    deadline = time.monotonic() + 240
    while not list((tmp_path / "long").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "still running" in cluster.d2sm("jobs", "wait", job, "--timeout", "0", code=3)[1]
    assert cluster.d2sm("jobs", "stop", job)[0] == f"job {job} stopped\n"
    assert "stopped" in cluster.d2sm("jobs", "wait", job, code=130)[1]
    assert list((tmp_path / "long").glob("step-*/meta.json"))
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
    record = urllib.request.Request(
        f"{cluster.state.dashboard}/api/jobs/{job}", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(record, timeout=10) as answer:
        told = json.load(answer)
    assert told["metadata"]["d2sm.verb"] == "train" and TOKEN not in json.dumps(told)
    kept = [path for top in (tmp_path, Path(cluster.state.temp)) for path in top.rglob("*") if path.is_file()]
    assert len(kept) > 50 and [path for path in kept if TOKEN.encode() in path.read_bytes()] == []


def test_a_users_own_network_travels_with_the_job(sent: Sent) -> None:
    code = sent.process.wait(300)
    out = sent.output.read_text()
    assert code == 0 and "succeeded after" in out and "ok      model" in out and "mynet:TinyNetwork width=6" in out
    assert TOKEN not in out
    weights = load_file(next((sent.storage / "mine").glob("step-*")) / "model.safetensors")
    assert weights["down.weight"].shape[0] == 6


def test_down_ends_everything_even_after_a_node_was_killed(cluster: LocalCluster) -> None:
    state = cluster.state
    psutil.Process(state.sessions[1]).kill()
    deadline = time.monotonic() + 60
    while "3 of 3" in (out := cluster.start("cluster", "status").communicate()[0]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "2 of 3 nodes alive" in out
    assert "processes ended" in cluster.d2sm("cluster", "down")[0]
    assert nodes.ours(state) == [] and not Path(state.temp).exists()
    assert not [p for p in psutil.process_iter() if state.temp in " ".join(_words(p))]
    assert cluster.d2sm("cluster", "down")[0] == "no cluster was up\n"
    assert "no cluster" in cluster.d2sm("cluster", "status", code=1)[0]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
