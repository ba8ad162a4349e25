"""Where the first half minute of a small run goes: seconds from the command to each stage, and CPU by process.

    python -m tests.benchmarks.startup [--workers 2 1 0] [--against CHECKOUT] [--rounds 3] [--steps 20]

Two training workers unless `--workers` gives others, 20 steps, evaluation in one actor, built-in scenes,
EfficientNet-Lite0 as Phi, an MLflow store that is new each time. The CPU seconds (user and system) are those that each
process had used when the last step ended; other work on the machine disturbs them less than the time that passed.
What is compared takes turns, and the ratios are to the first: other numbers of workers, and with `--against` another
checkout of this project with the first of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.benchmarks.children import environment

STAGES = (
    "imported", "checked", "Ray up", "MLflow open", "loop entered", "worker built",
    "first share", "first step", "last step", "trained", "evaluated", "process ends",
)  # fmt: skip
SAMPLING = 0.1  # seconds between two looks at the processes


def child(root: str, storage: str, steps: int, workers: int = 2) -> None:
    """One run, its stages written to a file as they are passed; in a process of its own."""
    from pipelines.runtime import leaving, session

    leaving.guard()
    session.begin(cpus=2)  # as `d2sm train` does, with the CPUs of this configuration
    from pipelines import evaluate
    from pipelines.recipes import recipe
    from pipelines.training import loop
    from pipelines.training.messages import WorkerTask

    file = Path(storage) / "stages"
    _mark(file, "imported")
    train: Any = importlib.import_module("pipelines.train")  # any: what they import is replaced
    launch: Any = importlib.import_module("pipelines.training.launch")
    looping: Any = loop
    tracked: Any = importlib.import_module("pipelines.training.tracked")
    train.check = _marked(train.check, file, "checked")
    tracked.open_run = _marked(tracked.open_run, file, "MLflow open")
    session.start = _marked(session.start, file, "Ray up")
    train_loop = loop.train_loop

    def timed(task: WorkerTask) -> None:  # pickled by value, and so is all that it uses
        def mark(stage: str) -> None:
            with open(file, "a") as out:
                out.write(json.dumps([stage, time.time()]) + "\n")

        def built(*args: Any, **kwargs: Any) -> Any:
            state = build(*args, **kwargs)
            mark("worker built")
            return state

        def stepped(*args: Any) -> Any:
            mark("first share")
            numbers = step(*args)
            mark("first step")
            if args[2] == steps - 1:
                mark("last step")
            return numbers

        mark("loop entered")
        build, step = looping.TrainState, looping.train_step
        looping.TrainState, looping.train_step = built, stepped
        train_loop(task)

    launch.train_loop = timed
    config = recipe("ffdnet_d2sm_cpu").replace(
        {
            "data.root": root, "data.crop_size": 64, "train.storage": storage, "train.name": "tiny",
            "train.max_steps": steps, "train.epochs": steps, "train.log_every": 5, "train.num_workers": workers,
            "evaluate.actors": 1, "evaluate.segmenter": None, "loss.queue_size": 64,
            "tracking.uri": f"sqlite:///{storage}/mlflow.db",
        }
    )  # fmt: skip
    trained = train.fit(config, quiet=True)
    _mark(file, "trained")
    evaluate.evaluate(trained.checkpoint, trained.config, quiet=True)
    _mark(file, "evaluated")
    leaving.end(0)


def _marked(run: Callable[..., Any], file: Path, stage: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        made = run(*args, **kwargs)
        _mark(file, stage)
        return made

    return call


def _mark(file: Path, stage: str) -> None:
    with file.open("a") as out:
        out.write(json.dumps([stage, time.time()]) + "\n")


Processes = dict[str, tuple[int, float]]  # kind: how many, and their CPU seconds together


def stages(checkout: Path, root: str, steps: int, workers: int) -> tuple[dict[str, float], Processes]:
    """Seconds from the start to the first time that each stage is passed; and the processes at the last step."""
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as storage:
        # A checkout's own file knows the names of its modules.
        file = checkout / "tests" / "benchmarks" / "startup.py"
        command = [sys.executable, str(file), "--child", root, storage, str(steps)]
        if workers != 2:  # what older checkouts have, whose script takes no number
            command.append(str(workers))
        started = time.time()
        variables = environment(checkout) | {"RAY_worker_niceness": "0"}
        run = subprocess.Popen(command, env=variables, cwd=checkout, stdout=subprocess.DEVNULL)
        file, seen, at_last_step = Path(storage) / "stages", dict[tuple[int, float], tuple[str, float]](), None
        while run.poll() is None:
            look(run.pid, seen)
            if at_last_step is None and file.is_file() and '"last step"' in file.read_text():
                at_last_step = by_kind(seen)
            time.sleep(SAMPLING)
        ended = time.time()
        if run.returncode:
            raise SystemExit(f"the run failed with exit code {run.returncode}")
        passed: dict[str, float] = {}
        for line in file.read_text().splitlines():
            stage, moment = json.loads(line)
            passed.setdefault(stage, moment - started)
    passed["process ends"] = ended - started
    return passed, at_last_step or {}


def look(pid: int, seen: dict[tuple[int, float], tuple[str, float]]) -> None:
    """Note what a process and all below it are called, and the CPU seconds that each has used."""
    try:
        below = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            words, times = process.cmdline(), process.cpu_times()
            kind = "driver" if process.pid == pid else kind_of(words, process.name())
            key, used = (process.pid, process.create_time()), times.user + times.system
            if kind == "ray::IDLE" and key in seen:  # what it did before
                kind = seen[key][0]
            seen[key] = kind, used


def kind_of(words: list[str], name: str) -> str:
    """What a process of Ray is: "ray::TrainController", "raylet", the script of a helper."""
    first = words[0] if words else name
    if first.startswith("ray::"):
        return first.partition(".")[0].partition("(")[0].partition(" ")[0]
    script = next((word for word in words[1:] if word.endswith(".py")), first)
    return Path(script).name


def by_kind(seen: dict[tuple[int, float], tuple[str, float]]) -> Processes:
    found: Processes = {}
    for kind, used in seen.values():
        count, total = found.get(kind, (0, 0.0))
        found[kind] = count + 1, total + used
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        root, storage, *numbers = args.child
        child(root, storage, *map(int, numbers))
        return
    import torch

    from pipelines.scenes import write_scenes
    from tests.benchmarks.timing import machine, table

    compared = {f"{workers} workers": (Path.cwd(), workers) for workers in args.workers}
    if args.against:
        compared["there"] = args.against.absolute(), args.workers[0]
    seen: dict[str, list[tuple[dict[str, float], Processes]]] = {name: [] for name in compared}
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as folder:
        root = str(write_scenes(Path(folder) / "scenes", train=12, val=2, height=128, width=256))
        for _ in range(args.rounds):
            for name, (checkout, workers) in compared.items():
                seen[name].append(stages(checkout, root, args.steps, workers))
    print(f"{machine(torch.device('cpu'))}; medians of {args.rounds}; {args.steps} steps, two images\n")
    rows, last = [], dict.fromkeys(compared, 0.0)
    for stage in STAGES:
        row = [stage]
        for name, found in seen.items():
            now = median(passed[stage] for passed, _ in found)
            row += [f"{now:.1f}", f"{now - last[name]:.1f}" if now >= last[name] else "beside it"]
            last[name] = max(now, last[name])
        rows.append(row)
    columns = [word for name in compared for word in (f"{name}, s", "after the one before")]
    print(table(["passed", *columns], rows))
    columns = [word for name in compared for word in (f"{name}, processes", "CPU s")]
    print("\n" + table(["at the last step", *columns], processes(seen)))
    first, *others = compared
    for name in others:
        for what, value in (
            ("last step, s", lambda one: one[0]["last step"]),
            ("process ends, s", lambda one: one[0]["process ends"]),
            ("CPU s at the last step", lambda one: sum(used for _, used in one[1].values())),
        ):
            ratios = [value(a) / value(b) for a, b in zip(seen[name], seen[first], strict=True)]
            print(f"{what}: {name} {median(ratios):.2f} of {first} ({min(ratios):.2f} to {max(ratios):.2f})")


def processes(seen: dict[str, list[tuple[dict[str, float], Processes]]]) -> list[list[str]]:
    """Rows: the kinds of processes, how many and their CPU seconds (medians), the most expensive first."""
    kinds = sorted(
        {kind for found in seen.values() for _, by in found for kind in by},
        key=lambda kind: -max(by.get(kind, (0, 0.0))[1] for found in seen.values() for _, by in found),
    )
    rows = []
    for kind in kinds:
        row = [kind]
        for found in seen.values():
            each = [by.get(kind, (0, 0.0)) for _, by in found]
            row += [f"{median(count for count, _ in each):.0f}", f"{median(used for _, used in each):.1f}"]
        rows.append(row)
    total = ["together"]
    for found in seen.values():
        total += [
            f"{median(sum(count for count, _ in by.values()) for _, by in found):.0f}",
            f"{median(sum(used for _, used in by.values()) for _, by in found):.1f}",
        ]
    return [*rows, total]


if __name__ == "__main__":
    main()
