"""Trainings and evaluations as a user starts them: start-up, speed, two on one card, precisions, resume.

What goals are set for comes first.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import torch

from d2sm.models import ESPNet
from pipelines.recipes import recipe
from pipelines.scenes import write_scenes
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.benchmarks.children import environment
from tests.benchmarks.queues import fill
from tests.benchmarks.steps import rows_of
from tests.gpu.options import ROOT, Options, options
from tests.gpu.results import record

LITE0 = {"loss.features": "efficientnet_lite0.blocks.4", "data.crop_size": 128, "train.batch_size": 16}
LEVELS = "[25,35,50]"
# evaluate.actors: how the row is called
ACTORS = {0: "actors 0", 1: "actors 1", 4: "4 actors on a quarter of the GPU each"}


class Runs:
    """Commands in a folder of their own, each on its own Ray."""

    def __init__(self, folder: Path, given: Options) -> None:
        self.folder, self.given = folder, given
        self.steps = 60 if given.small else 240
        self.log_every = 20
        height, width = (96, 128) if given.small else (360, 480)  # as many as CamVid has, and as large
        self.root = given.data or write_scenes(folder / "scenes", train=24, val=51, height=height, width=width)
        name = "ffdnet_d2sm_cpu" if given.device.type == "cpu" else "ffdnet_d2sm_gpu"
        small = {"data.crop_size": 64, "train.batch_size": 4, "model.width": 8, "model.depth": 3, "loss.queue_size": 64}
        self.config = recipe(name).replace(
            LITE0
            | (small if given.small else {})
            | {"train.num_workers": 1, "train.log_every": self.log_every, "train.epochs": 200}
        )
        self.config.save(folder / "config.yaml")

    def train(self, name: str, *keys: str) -> subprocess.Popen[bytes]:
        """Start a training."""
        storage = self.folder / name
        storage.mkdir(exist_ok=True)
        keys = (f"train.name={name}", f"train.storage={storage}", f"data.root={self.root}", *keys)
        keys = ("evaluate.segmenter=null", f"tracking.uri=sqlite:///{storage}/mlflow.db", *keys)
        return self.start("train", "--config", str(self.folder / "config.yaml"), "--no-evaluate", "--quiet", *keys)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "cluster.cli", *words], cwd=self.folder, env=environment(ROOT))

    def waited(self, name: str) -> float:
        """The part of the time in which the worker waited for crops: the mean over the log's entries but the first."""
        with sqlite3.connect(self.folder / name / "mlflow.db") as store:
            rows = store.execute("select value from metrics where key = 'data_wait' order by step").fetchall()
        return fmean(value for (value,) in rows[1:])

    def logged(self, name: str) -> dict[int, tuple[float, float]]:
        """Step: (time of the entry in seconds, loss)."""
        with sqlite3.connect(self.folder / name / "mlflow.db") as store:
            rows = store.execute("select step, timestamp, value from metrics where key = 'loss' order by step")
            return {step: (stamp / 1e3, value) for step, stamp, value in rows}

    def began(self, name: str) -> float:
        """When the first entry of the log was written, in seconds."""
        return min(stamp for step, (stamp, _) in self.logged(name).items() if step >= self.log_every)

    def speed(self, name: str) -> float:
        """Steps a second, from the second entry of the log to the last."""
        entries = sorted(self.logged(name).items())[1:]
        (first, (start, _)), (last, (end, _)) = entries[0], entries[-1]
        return (last - first) / (end - start)


def segmenter(data: Path | None, folder: Path) -> list[str]:
    """Keys of ESPNet-CamVid, with the weights beside the photographs, as `../shared/gpu/pack` has them.

    Where there are none, random ones are written into the folder: they cost the same.
    """
    weights = data.parent / "weights/espnet_p2_q8_camvid.pth" if data else None
    if weights is None or not weights.is_file():
        weights = folder / "espnet_random.pth"
    if not weights.is_file():
        torch.save(ESPNet(classes=12, p=2, q=8, shallow="pyramid").state_dict(), weights)
    return ["evaluate.segmenter=espnet-camvid", f"evaluate.segmenter_weights={weights}"]


def evaluated(count: int, actors: int) -> str:
    """The row of an evaluation of so many photographs."""
    return f"evaluate, {count} photographs at 3 levels, {ACTORS[actors]}: s"


def evaluate(runs: Runs, actors: int, cache: Path) -> tuple[str, float]:
    """Evaluate the first run at three levels: the name of the row, and the seconds from the command to the prompt.

    Args:
        actors: one of `ACTORS`; on a CPU at most two, since four have no place on two cores.
        cache: what was measured there of noisy and clean photographs is not measured again.
    """
    os.environ["XDG_CACHE_HOME"] = str(cache)
    out, on_gpu = runs.folder / f"results-{actors}.json", runs.given.device.type == "cuda"
    keys = [f"evaluate.actors={actors if on_gpu else min(actors, 2)}", f"evaluate.sigmas={LEVELS}"]
    keys += [f"evaluate.use_gpu={str(on_gpu).lower()}", f"train.gpus_per_worker={0.25 if actors == 4 else 1}"]
    keys += segmenter(runs.given.data, runs.folder)
    begun = time.time()
    wait(runs.start("evaluate", "--out", str(out), "--quiet", str(runs.folder / "first/first"), *keys))
    passed = time.time() - begun
    return evaluated(json.loads(out.read_text())["images"], actors), passed


def wait(*processes: subprocess.Popen[bytes]) -> None:
    """Until all have ended, so that none disturbs what is measured next; raises SystemExit if one failed."""
    codes = [process.wait() for process in processes]
    for process, code in zip(processes, codes, strict=True):
        if code:
            raise SystemExit(f"{' '.join(map(str, process.args))}: exit code {code}")  # type: ignore[arg-type]


def plain(runs: Runs) -> float:
    """Steps a second of the same step in a plain loop, its crops in memory."""
    device = runs.given.device
    state = TrainState(runs.config.replace({"loss.features_weights": "random"}), 10**6, device=device)
    rows = rows_of(runs.config, 0)
    train_step(state, rows[0], 0)
    if state.objective.d2sm is not None:
        fill(state.objective.d2sm.matching)
    count = 8 if runs.given.small else 100
    for _ in range(2):  # the first round warms up
        start = time.perf_counter()
        for step in range(count):
            train_step(state, rows[step % len(rows)], step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def main() -> None:
    given = options(__doc__)
    with tempfile.TemporaryDirectory(prefix="d2sm-gpu-") as folder:
        runs = Runs(Path(folder), given)
        started = time.time()
        wait(runs.train("first", f"train.max_steps={runs.steps}"))
        record("runs", f"from the command to step {runs.log_every}, s", runs.began("first") - started)
        record("runs", "training through Ray, steps a second", runs.speed("first"))
        alone = plain(runs)
        record("runs", "Ray Train to a plain loop, steps a second", runs.speed("first") / alone)
        record("runs", "training through Ray: of the time waiting for crops, %", 100 * runs.waited("first"))

        started = time.time()
        wait(runs.train("local", f"train.max_steps={runs.steps}", "train.num_workers=0"))
        record("runs", f"from the command to step {runs.log_every} without workers, s", runs.began("local") - started)
        record("runs", "without workers to a plain loop, steps a second", runs.speed("local") / alone)

        for actors in ACTORS:
            record("runs", *evaluate(runs, actors, runs.folder / f"cache-{actors}"))

        # Side by side on one card, the same crops and noise in two precisions.
        more = [f"train.max_steps={runs.steps if given.small else runs.steps // 2}"]
        if given.device.type == "cuda":
            more.append("train.gpus_per_worker=0.5")
        kinds = ("fp32", "bf16")
        wait(*(runs.train(kind, *more, f"train.precision={kind}") for kind in kinds))
        record("runs", "two trainings on one device, steps a second together", sum(runs.speed(kind) for kind in kinds))
        full, half = (runs.logged(kind) for kind in kinds)
        differences = [abs(half[step][1] - loss) / loss for step, (_, loss) in full.items()]
        record("runs", "bf16 against fp32: largest relative difference of a logged loss", max(differences))

        begun = time.time()
        wait(runs.train("local", f"train.max_steps={runs.steps + runs.log_every}", "train.num_workers=0"))
        record("runs", f"resume for {runs.log_every} steps without workers: s", time.time() - begun)
        record("runs", "steps logged after the resume", last := max(runs.logged("local")))
        if last != runs.steps + runs.log_every:
            raise SystemExit(f"the resumed run ended at step {last}, not {runs.steps + runs.log_every}")
        row, passed = evaluate(runs, 0, runs.folder / "cache-0")
        record("runs", f"{row}, again", passed)


if __name__ == "__main__":
    main()
