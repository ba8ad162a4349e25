"""A training step with full queues, its parts, and what they count: operations, bytes, the best of the machine.

Needs neither Ray nor MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipelines.config import Config
from pipelines.data import stream
from pipelines.recipes import recipe
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.benchmarks.queues import fill
from tests.benchmarks.timing import seconds

ROWS = 4  # different shares in memory


def rows_of(config: Config, rank: int) -> list[stream.WorkerBatch]:
    """A worker's shares, as the stream would bring them."""
    share, size = config.train.batch_size // config.train.workers[1], config.data.crop_size
    random = np.random.default_rng(rank)
    return [
        {
            "clean": random.integers(0, 256, (share, size, size, 3), np.uint8),
            "sigma": random.uniform(0, 75, share).astype(np.float32),
            "seed": random.integers(0, 2**60, share),
        }
        for _ in range(ROWS)
    ]


def settings(name: str, workers: int, threads: int, device: torch.device) -> Config:
    changes: dict[str, Any] = {"train.num_workers": workers, "train.threads": threads}
    changes |= {"train.ema": 0, "train.clip": None}
    changes |= {"train.schedule": "constant", "train.warmup_steps": 0, "train.checkpoint_every": 10**6}
    changes |= {"loss.features_weights": "random", "train.use_gpu": device.type == "cuda", "train.cpus_per_worker": 0.5}
    return recipe(name).replace(changes | {"train.name": f"bench{workers}"})


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
        clean, noisy, sigma, _ = state.load(row)
        clock("crops to tensors, noise")
        with meter("network, forward"):
            restored = state.model(noisy, sigma)[0].float()
        clock("network, forward")
        x = restored.detach().requires_grad_()
        with meter("Phi of clean"), torch.no_grad():
            (f_y,) = loss._samples(clean)
        clock("Phi of clean")
        with meter("Phi of restored"):
            (f_x,) = loss._samples(x)
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
        whole: seconds of `train_step`, the device waited for after each; median.
        back_to_back: of `train_step` where the device is waited for after the last of several alone, so that the next
            step's copies and launches overlap with this one's kernels; mean.
        best: operations a second that the device was seen to do at best, see `peak`.
        memory: bytes that torch held at most on a GPU; 0 on a CPU.
    """

    parts: dict[str, float]
    flops: dict[str, int]
    whole: float
    back_to_back: float
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
    rows, flops = rows_of(config, 0), dict[str, FlopCounterMode]()
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
    several = seconds(lambda: [train_step(state, row, step) for step in range(2) for row in rows], device)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Measured(
        parts={part: median(time[part] for time in taken) for part in taken[0]},
        flops={part: counter.get_total_flops() for part, counter in flops.items()},
        whole=median(whole),
        back_to_back=several / (2 * ROWS),
        best=peak(device, torch.bfloat16 if config.train.precision == "bf16" else torch.float32),
        memory=memory,
    )
