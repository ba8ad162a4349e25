"""Where the first half minute of a small run goes: seconds from the start of the process to each stage.

    python -m tests.benchmarks.startup [--against CHECKOUT] [--rounds 3]

Two training workers, three steps, evaluation in one actor, built-in scenes, EfficientNet-Lite0 as Phi, an MLflow store
that is new each time. `--against`: the same of another checkout of this project, in turn, with the ratio of the totals.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

STAGES = (
    "imported", "checked", "Ray up", "MLflow open", "loop entered", "worker built",
    "first share", "first step", "trained", "evaluated", "process ends",
)  # fmt: skip


def child(root: str, storage: str) -> None:
    """One run, its stages written to a file as they are passed; in a process of its own."""
    from pipelines import evaluate, train
    from pipelines.recipes import recipe
    from pipelines.training import launch, loop
    from pipelines.training.messages import WorkerTask

    file = Path(storage) / "stages"
    _mark(file, "imported")
    for name, stage in (
        ("check", "checked"),
        ("open_run", "MLflow open"),
    ):
        setattr(train, name, _marked(getattr(train, name), file, stage))
    train.session.start = _marked(train.session.start, file, "Ray up")
    train_loop = loop.train_loop

    def timed(task: WorkerTask) -> None:  # pickled by value, and so is all that it uses
        def mark(stage: str) -> None:
            with open(file, "a") as out:
                out.write(json.dumps([stage, time.time()]) + "\n")

        def built(*args: Any) -> Any:
            state = build(*args)
            mark("worker built")
            return state

        def stepped(*args: Any) -> Any:
            mark("first share")
            numbers = step(*args)
            mark("first step")
            return numbers

        mark("loop entered")
        build, step = loop.TrainState, loop.train_step
        loop.TrainState, loop.train_step = built, stepped  # type: ignore[misc, assignment]
        train_loop(task)

    launch.train_loop = timed
    config = recipe("ffdnet_d2sm_cpu").replace(
        {
            "data.root": root, "data.crop_size": 64, "train.storage": storage, "train.name": "tiny",
            "train.max_steps": 3, "train.log_every": 1, "evaluate.actors": 1, "evaluate.segmenter": None,
            "loss.queue_size": 64, "tracking.uri": f"sqlite:///{storage}/mlflow.db",
        }
    )  # fmt: skip
    trained = train.fit(config, quiet=True)
    _mark(file, "trained")
    evaluate.evaluate(trained.checkpoint, trained.config, quiet=True)
    _mark(file, "evaluated")


def _marked(run: Callable[..., Any], file: Path, stage: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        made = run(*args, **kwargs)
        _mark(file, stage)
        return made

    return call


def _mark(file: Path, stage: str) -> None:
    with file.open("a") as out:
        out.write(json.dumps([stage, time.time()]) + "\n")


def stages(checkout: Path, root: str) -> dict[str, float]:
    """Seconds from the start to the first time that each stage is passed."""
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as storage:
        command = [sys.executable, __file__, "--child", root, storage]
        started = time.time()
        environment = {**os.environ, "PYTHONPATH": str(checkout), "RAY_worker_niceness": "0"}
        subprocess.run(command, check=True, env=environment, cwd=checkout, stdout=subprocess.DEVNULL)
        ended = time.time()
        passed: dict[str, float] = {}
        for line in (Path(storage) / "stages").read_text().splitlines():
            stage, moment = json.loads(line)
            passed.setdefault(stage, moment - started)
    passed["process ends"] = ended - started
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    import torch

    from pipelines.scenes import write_scenes
    from tests.benchmarks.timing import machine, table

    checkouts = {"here": Path.cwd()} | ({"there": args.against.absolute()} if args.against else {})
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as folder:
        root = write_scenes(Path(folder) / "scenes", train=12, val=2, height=128, width=256)
        for _ in range(args.rounds):
            for name, checkout in checkouts.items():
                seen[name].append(stages(checkout, str(root)))
    print(f"{machine(torch.device('cpu'))}; medians of {args.rounds}; two workers, three steps, two images\n")
    rows, last = [], dict.fromkeys(checkouts, 0.0)
    for stage in STAGES:
        row = [stage]
        for name, found in seen.items():
            now = median(one[stage] for one in found)
            row += [f"{now:.1f}", f"{now - last[name]:.1f}"]
            last[name] = now
        rows.append(row)
    header = ["passed", *(word for name in checkouts for word in (f"{name}, s", "after the one before"))]
    print(table(header, rows))
    if args.against:
        for stage in ("first step", "process ends"):
            ratios = [a[stage] / b[stage] for a, b in zip(seen["here"], seen["there"], strict=True)]
            print(f"{stage}: here {median(ratios):.2f} of there ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
