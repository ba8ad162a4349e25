"""Real gloo process groups, and a small training that every rank can run a share of."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes


def on_ranks(function: Callable[[int, int], dict[Any, Any]], workers: int, folder: Path) -> list[dict[Any, Any]]:
    """What `function(rank, workers)` returns in each of so many processes, which form a process group."""
    start(_rank, (workers, str(folder), function), workers)
    # Written a moment ago by our own processes; weights_only=False because keys are tuples.
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(workers)]


def start(function: Callable[..., None], args: tuple[Any, ...], workers: int) -> None:
    """Call `function(rank, *args)` in so many processes, and wait for all of them.

    They are forked from a process that has imported torch and nothing else; each would need seconds for that.
    """
    multiprocessing.set_forkserver_preload(["torch", "torchvision", "torch.nn.parallel"])
    start_processes(function, args=args, nprocs=workers, start_method="forkserver")


def _rank(rank: int, workers: int, folder: str, function: Callable[[int, int], dict[Any, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    torch.save(function(rank, workers), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def small_network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).double()


def small_phi() -> nn.Module:
    torch.manual_seed(8)
    return nn.Conv2d(3, 5, 4, stride=4).double()


def batch_of(step: int, uneven: bool) -> tuple[torch.Tensor, list[int]]:
    """The images of a step, and how many of them each of four workers has; two workers join two shares each."""
    sizes = [1, 3, 2, 2] if uneven else [2, 2, 2, 2]
    return torch.rand(sum(sizes), 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64), sizes


def slice_of(sizes: list[int], rank: int, workers: int) -> slice:
    each = len(sizes) // workers
    start = sum(sizes[: rank * each])
    return slice(start, start + sum(sizes[rank * each : (rank + 1) * each]))
