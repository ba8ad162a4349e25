"""Real gloo process groups, and a small training that every rank can run a share of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


def on_ranks(function: Callable[[int, int], dict[Any, Any]], workers: int, folder: Path) -> list[dict[Any, Any]]:
    """What `function(rank, workers)` returns in each of so many processes, which form a process group."""
    mp.spawn(_rank, args=(workers, str(folder), function), nprocs=workers)
    # Written a moment ago by our own processes; weights_only=False because keys are tuples.
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(workers)]


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
