"""Where the time of a training step goes, and how near each part comes to what the machine can do.

    python -m tests.benchmarks.step_parts [--device cuda] [--recipe ffdnet_d2sm_cpu] [--rounds 15]

L1 + D2SM with full queues on one worker with one thread. The parts are timed one after the other, with the graph cut
between them; on a GPU by its own clock. Counted are convolutions and products of matrices, not deformable convolutions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from d2sm import divergence, matching
from d2sm.features import patches
from d2sm.matching import StatisticsMatching
from pipelines.config import Config
from pipelines.data import stream
from pipelines.recipes import recipe
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.benchmarks.timing import machine, ms, seconds, table
from tests.benchmarks.training import ROWS, rows_of, settings


class Clock:
    """Times the parts of a step between marks: on a GPU by events, so that the host need not wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks = [("", self._now())]

    def __call__(self, part: str) -> None:
        self.marks.append((part, self._now()))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def parts(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {name: now - before for (_, before), (name, now) in zip(self.marks, self.marks[1:], strict=False)}
        torch.cuda.synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return {name: before.elapsed_time(now) / 1e3 for (_, before), (name, now) in pairs}


Meter = Callable[[str], AbstractContextManager[Any]]


def in_parts(state: TrainState, row: stream.WorkerBatch, clock: Clock, meter: Meter) -> None:
    """L1 + D2SM as `train_step` has it, with the graph cut between the parts."""
    loss, half = state.objective.d2sm, state.config.train.precision == "bf16"
    assert loss is not None
    with torch.autocast(state.device.type, torch.bfloat16, enabled=half):
        clean, noisy, sigma = stream.to_tensors(row, state.device, state.config.degradation)
        clock("crops to tensors, noise")
        with meter("network, forward"):
            restored = state.model(noisy, sigma)[0].float()
        clock("network, forward")
        x = restored.detach().requires_grad_()
        with meter("Phi of clean"), torch.no_grad():
            f_y = patches(loss.features(clean), side=loss._patch_cells)
        clock("Phi of clean")
        with meter("Phi of restored"):
            f_x = patches(loss.features(x), side=loss._patch_cells)
        clock("Phi of restored")
        rows = f_x.detach().requires_grad_()
        with meter("matching"):
            value = loss.matching(restored=rows, clean=f_y)
            (state.config.loss.terms["d2sm"] * value).backward()
        clock("matching")
        (x - clean).abs().mean().backward()
        clock("L1")
    with meter("Phi, backward"):
        f_x.backward(rows.grad)
    clock("Phi, backward")
    state.optimizer.zero_grad(set_to_none=True)
    with meter("network, backward"):
        restored.backward(x.grad)
    clock("network, backward")
    nn.utils.clip_grad_norm_(state.network.parameters(), float("inf"))
    state.optimizer.step()
    clock("norm and optimizer")


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second: what the machine was seen to do at best.

    The faster of a large product of matrices and a large convolution. On a CPU different libraries compute them, and
    the product's may leave the processor's widest instructions unused: convolutions then pass it.
    """
    side = 8192 if device.type == "cuda" else 2048
    channels, size, batch = (512, 64, 64) if device.type == "cuda" else (256, 64, 4)
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.randn(batch, channels, size, size, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    works: list[Callable[[], Tensor]] = [lambda: a @ a, lambda: torch.conv2d(x, weight, padding=1)]
    best = 0.0
    for work in works:
        with FlopCounterMode(display=False) as flops:
            work()
        best = max(best, flops.get_total_flops() / min(seconds(work, device) for _ in range(5)))
    return best


@dataclass(frozen=True)
class Measured:
    """A training step with full queues on one worker.

    Attributes:
        parts: seconds of each part of the step, with the graph cut between them; medians.
        flops: operations of the parts that convolve or multiply matrices.
        whole: seconds of `train_step`; median.
        best: operations a second that the device was seen to do at best, see `peak`.
        memory: bytes that torch held at most on a GPU; 0 on a CPU.
    """

    parts: dict[str, float]
    flops: dict[str, int]
    whole: float
    best: float
    memory: int

    @property
    def of_the_peak(self) -> float:
        """The whole step's operations a second, divided by `best`."""
        return sum(self.flops.values()) / self.whole / self.best


def measure(config: Config, device: torch.device, rounds: int) -> Measured:
    """Time a step and its parts, in turns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    state = TrainState(config, 10**6, device=device)
    assert state.objective.d2sm is not None
    rows, flops = rows_of(config, 0), {}
    train_step(state, rows[0], 0)  # allocates the queues
    fill(state.objective.d2sm.matching)

    def count(part: str) -> AbstractContextManager[Any]:
        flops[part] = FlopCounterMode(display=False)
        return flops[part]

    in_parts(state, rows[0], Clock(device), count)
    taken: list[dict[str, float]] = []
    whole: list[float] = []
    for index in range(rounds):
        clock = Clock(device)
        in_parts(state, rows[index % ROWS], clock, lambda _: nullcontext())
        taken.append(clock.parts())
        whole.append(seconds(lambda index=index: train_step(state, rows[index % ROWS], index), device))  # type: ignore[misc]
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Measured(
        parts={part: median(time[part] for time in taken) for part in taken[0]},
        flops={part: counter.get_total_flops() for part, counter in flops.items()},
        whole=median(whole),
        best=peak(device, torch.bfloat16 if config.train.precision == "bf16" else torch.float32),
        memory=memory,
    )


def fill(loss: StatisticsMatching) -> None:
    """Fill the queues with random rows: what they hold costs nothing."""
    rings = loss.memory.rings
    while loss.memory.fill < loss.queue_size:
        count = min(64, loss.queue_size - loss.memory.fill)
        clean = torch.randn(count, rings.shape[2], device=rings.device)
        loss(clean + 0.3 * torch.randn_like(clean), clean)


def shares(name: str, device: torch.device, rounds: int) -> list[list[str]]:
    """Rows: the parts of a step on one worker with full queues, and how near the machine's peak they come."""
    found = measure(settings(name, 1, 1, device), device, rounds)
    total, counted = sum(found.parts.values()), sum(found.flops.values())
    made = []
    for part, passed in found.parts.items():
        done = found.flops.get(part, 0)
        speed = [f"{done / 1e9:.3g}", f"{done / passed / 1e9:.3g}", f"{done / passed / found.best:.0%}"]
        made.append([part, ms(passed), f"{passed / total:.1%}", *(speed if done else [""] * 3)])
    made.append(["parts together", ms(total), "", *[""] * 3])
    made.append(
        ["train_step, whole", ms(found.whole), "", f"{counted / 1e9:.3g}", f"{counted / found.whole / 1e9:.3g}",
         f"{found.of_the_peak:.0%}"]
    )  # fmt: skip
    made.append(["large product or convolution", "", "", "", f"{found.best / 1e9:.3g}", "100%"])
    return made


def gathering(rank: int, workers: int, name: str, folder: str) -> None:
    """One of the workers of `gathered`: seconds a step, and of these in collectives of the loss."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    config = settings(name, workers, 1, torch.device("cpu"))
    spent = 0.0

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Tensor) -> Any:
            nonlocal spent
            start = time.perf_counter()
            made = run(*args)
            spent += time.perf_counter() - start
            return made

        return call

    places = ("d2sm.matching.gather_rows", "d2sm.divergence.sum_over_workers")
    with (
        patch("ray.train.torch.get_device", lambda: torch.device("cpu")),
        patch("ray.train.torch.prepare_model", DistributedDataParallel),
    ):
        state = TrainState(config, 10**6)
    rows, seen = rows_of(config, rank), []
    with patch(places[0], timed(matching.gather_rows)), patch(places[1], timed(divergence.sum_over_workers)):
        for step in range(24):
            dist.barrier()
            spent, start = 0.0, time.perf_counter()
            train_step(state, rows[step % ROWS], step)
            seen.append((time.perf_counter() - start, spent))
    torch.save(seen[4:], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def gathered(name: str) -> str:
    """What two workers on this machine spend in the loss's collectives, waiting for each other included."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(gathering, args=(2, name, folder), nprocs=2)  # type: ignore[attr-defined]
        seen = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    least = [min(a[1], b[1]) for a, b in zip(*seen, strict=True)]  # who comes last does not wait
    step = median(times[0] for worker in seen for times in worker)
    spent = median(times[1] for worker in seen for times in worker)
    return (
        f"two workers: a step {ms(step)} ms, of it in all-gather and all-reduce of the loss {ms(spent)} ms "
        f"({spent / step:.1%}), {ms(median(least))} ms ({median(least) / step:.1%}) on the worker that waits less"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipe", default="ffdnet_d2sm_cpu")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    device, train = torch.device(args.device), recipe(args.recipe).train
    torch.set_num_threads(1)
    about = f"{args.recipe}: batch {train.batch_size}, crops of {recipe(args.recipe).data.crop_size}, {train.precision}"
    print(f"{machine(device)}; {about}; medians of {args.rounds} steps\n")
    header = ["part of a step", "ms", "share", "GFLOP", "GFLOP / s", "of the peak"]
    print(table(header, shares(args.recipe, device, args.rounds)))
    if device.type == "cpu":
        print(f"\n{gathered(args.recipe)}")


if __name__ == "__main__":
    main()
