"""Ray Train's loop against a plain torch loop, on batches already in memory; and workers against threads.

    python -m tests.benchmarks.training [--device cuda] [--recipe ffdnet_d2sm_cpu] [--rounds 7] [--steps 12]

Same network, loss, optimizer and crops. Ours is the whole `train_loop`, log and checks included, in Ray Train's
workers, but for the stream: rows come from memory. The plain loop is what one would write, in processes of its own,
under DistributedDataParallel where there are two. All processes live at the same time and take turns; a round is
`--steps` steps, and ratios are those within a round.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any
from unittest.mock import patch

import ray
import ray.train
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.config import Config
from pipelines.data import stream
from pipelines.networks.models import TrainingModule, build
from pipelines.recipes import recipe
from pipelines.runs.folder import RunFolder
from pipelines.runtime import session
from pipelines.training import loop as ours
from pipelines.training.batches import Loader
from pipelines.training.messages import MessageQueue, WorkerTask
from pipelines.training.objective import Objective
from tests.benchmarks.steps import rows_of, settings
from tests.benchmarks.timing import goal, machine, table

WARM = 2  # rounds that are not counted


class Gate:
    """How a process learns that it is its turn, and says how long that took: files in a folder."""

    def __init__(self, folder: Path, name: str, rounds: int, steps: int) -> None:
        self.folder, self.name, self.rounds, self.steps = folder, name, rounds, steps

    def turns(self, rank: int, rows: list[stream.WorkerBatch], device: torch.device) -> Iterator[stream.WorkerBatch]:
        """Rows, `steps` a turn; the time from the first to the end of the last step is written down."""
        for index in range(self.rounds):
            _wait(self.folder / f"go-{self.name}-{index}")
            start = time.perf_counter()
            for step in range(self.steps):
                yield rows[step % len(rows)]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            done = self.folder / f"done-{self.name}-{index}-{rank}"
            done.with_suffix(".part").write_text(str(time.perf_counter() - start))
            done.with_suffix(".part").rename(done)

    def turn(self, index: int, workers: int) -> float:
        """Let the processes of this name take a turn; gives the seconds of the slowest."""
        (self.folder / f"go-{self.name}-{index}").touch()
        files = [self.folder / f"done-{self.name}-{index}-{rank}" for rank in range(workers)]
        return max(float(_wait(file).read_text()) for file in files)


def _wait(file: Path) -> Path:
    give_up = time.monotonic() + 300
    while not file.exists():
        if time.monotonic() > give_up:
            raise SystemExit(f"{file.name} did not come")
        time.sleep(0.002)
    return file


def plain(rank: int, config: Config, gate: Gate, device: str) -> None:
    """What one would write without Ray."""
    where, workers = torch.device(device), config.train.workers[1]
    torch.set_num_threads(config.train.threads)
    if workers > 1:
        rendezvous = f"file://{gate.folder}/rendezvous-{gate.name}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    torch.manual_seed(0)
    network = build(config.model).to(where).to(memory_format=torch.channels_last)
    learner = TrainingModule(network, estimate=config.loss.uses_estimate)
    model: nn.Module = DistributedDataParallel(learner) if workers > 1 else learner
    objective = Objective(config.loss).to(where).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.train.lr)
    load = Loader(config, where)
    for row in gate.turns(rank, rows_of(config, rank), where):
        clean, noisy, sigma, _ = load(row)
        with torch.autocast(where.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            restored, estimate = model(noisy, sigma)
            loss, _ = objective(restored=restored.float(), clean=clean, sigma=sigma, estimate=estimate)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if workers > 1:
        dist.destroy_process_group()


def rays(task: WorkerTask, gate: Gate) -> None:
    """Our loop, its rows from memory."""
    config = task.config
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()

    def from_memory(*_: Any) -> Iterator[stream.WorkerBatch]:
        device = ray.train.torch.get_device()
        turns = gate.turns(rank, rows_of(config, rank), device)
        yield from ({**row, "step": step, "rank": rank % workers} for step, row in enumerate(turns))

    with patch.object(ours, "batches", from_memory), patch.object(ours, "begin_stream", lambda: None):
        ours.train_loop(task)


def start_plain(config: Config, gate: Gate, device: torch.device) -> Callable[[], None]:
    running = mp.spawn(  # type: ignore[attr-defined]
        plain, args=(config, gate, str(device)), nprocs=config.train.num_workers, join=False
    )

    def end() -> None:
        while not running.join():
            pass

    return end


def start_rays(config: Config, gate: Gate) -> Callable[[], None]:
    name = config.train.name
    messages = MessageQueue.remote()  # type: ignore[attr-defined]
    task = WorkerTask(
        config, RunFolder(gate.folder / name), gate.rounds * gate.steps, 10**6, {"name": name}, messages=messages
    )
    trainer = TorchTrainer(
        partial(rays, task, gate),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers, use_gpu=config.train.use_gpu, resources_per_worker={"CPU": 0.5}
        ),
        run_config=RunConfig(name=config.train.name, storage_path=str(gate.folder)),
    )
    thread = Thread(target=trainer.fit)
    thread.start()
    return thread.join


def take_turns(groups: dict[str, tuple[Gate, int]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every counted round, by group."""
    taken: dict[str, list[float]] = {name: [] for name in groups}
    for index in range(rounds + WARM):
        for name, (gate, workers) in groups.items():
            passed = gate.turn(index, workers)
            if index >= WARM:
                taken[name].append(passed)
    return taken


def against_plain(name: str, workers: int, device: torch.device, rounds: int, steps: int) -> list[str]:
    """A row: crops a second of both, and the ratio."""
    config = settings(name, workers, 1, device)
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as folder:
        gates = {way: Gate(Path(folder), way, rounds + WARM, steps) for way in ("plain", "ray")}
        ends = [start_plain(config, gates["plain"], device), start_rays(config, gates["ray"])]
        taken = take_turns({way: (gate, workers) for way, gate in gates.items()}, rounds)
        for end in ends:
            end()
    ratios = [a / b for a, b in zip(taken["plain"], taken["ray"], strict=True)]
    each = f"{workers} worker{'s' * (workers > 1)}"
    goal(f"training, Ray Train on {each}, to a plain loop's crops a second", ratios, least=0.97)
    crops = {way: steps * config.train.batch_size / median(times) for way, times in taken.items()}
    spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return [f"{workers} x 1", f"{crops['plain']:.1f}", f"{crops['ray']:.1f}", spread]


def by_threads(name: str, device: torch.device, rounds: int, steps: int) -> list[list[str]]:
    """Rows: workers x threads, plain loop, crops a second; the batch is the same over all workers."""
    cases = [(1, 1), (1, 2), (2, 1), (2, 2)]
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as folder:
        groups, ends = {}, []
        for workers, threads in cases:
            gate = Gate(Path(folder), f"{workers}x{threads}", rounds + WARM, steps)
            groups[gate.name] = (gate, workers)
            ends.append(start_plain(settings(name, workers, threads, device), gate, device))
        taken = take_turns(groups, rounds)
        for end in ends:
            end()
    base, crops = taken["1x1"], recipe(name).train.batch_size * steps
    rows = []
    for workers, threads in cases:
        times = taken[f"{workers}x{threads}"]
        ratio = median(a / b for a, b in zip(base, times, strict=True))
        rows.append([f"{workers} x {threads}", f"{crops / median(times):.1f}", f"{ratio:.2f}x"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipe", default="ffdnet_d2sm_cpu")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    device = torch.device(args.device)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    config = recipe(args.recipe)
    about = (
        f"{args.recipe}: batch {config.train.batch_size}, crops of {config.data.crop_size}, {config.train.precision}"
    )
    print(f"{machine(device)}; {about}; medians of {args.rounds} rounds of {args.steps} steps\n")
    session.start(cpus=4)
    rows = [against_plain(args.recipe, workers, device, args.rounds, args.steps) for workers in args.workers]
    ray.shutdown()
    print(table(["workers x threads", "plain, crops / s", "Ray Train, crops / s", "ratio (smallest, largest)"], rows))
    if device.type == "cpu":
        print(
            f"\n{table(['workers x threads', 'plain, crops / s', ''], by_threads(args.recipe, device, 5, args.steps))}"
        )


if __name__ == "__main__":
    main()
