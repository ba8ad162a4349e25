"""Bytes that a worker hands to collectives in a step of the loss, measured in gloo process groups on this machine.

    python -m tests.benchmarks.communication

The formulas are those of `StatisticsMatching` (and of `JSDivergence` for JSD): with b bytes a number, 2 N D b for the
rows and 3 n float64 for the changes of the column sums, plus 24 bytes of shapes for every gather of rows. They do not
depend on the number of workers W: each adds its own rows only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cluster.scaling import loss_bytes
from d2sm import StatisticsMatching
from d2sm.divergence import Divergence
from tests.benchmarks.timing import table

Case = tuple[int, int, int, Divergence, torch.dtype]
CASES: tuple[Case, ...] = (
    (8, 8192, 256, "kl", torch.float32),
    (8, 8192, 1024, "kl", torch.float32),
    (8, 8192, 1024, "kl", torch.bfloat16),
    (16, 1792, 1024, "kl", torch.float32),
    (16, 1792, 1024, "kl", torch.bfloat16),
    (16, 1792, 1024, "jsd", torch.float32),
)


def formula(n: int, d: int, q: int, divergence: Divergence, dtype: torch.dtype) -> int:
    """Bytes a step with N rows of D numbers a worker and full queues, for W > 1."""
    return loss_bytes(n=n, d=d, q=q, divergence=divergence, itemsize=dtype.itemsize)


def measured(n: int, d: int, q: int, divergence: Divergence, dtype: torch.dtype) -> int:
    """Bytes of the tensors that this worker passes to all_gather and all_reduce in one step with full queues."""
    matching = StatisticsMatching(q, divergence, gather_dtype=dtype)
    sent = 0

    def all_gather(everyone: list[Tensor], mine: Tensor, **where: Any) -> None:
        nonlocal sent
        sent += mine.nbytes
        gather(everyone, mine, **where)

    def all_reduce(values: Tensor, *args: Any) -> None:
        nonlocal sent
        sent += values.nbytes
        reduce(values, *args)

    gather, reduce = dist.all_gather, dist.all_reduce
    with patch.object(dist, "all_gather", all_gather), patch.object(dist, "all_reduce", all_reduce):
        step(matching, q // dist.get_world_size(), d)  # fills the queues
        sent = 0
        step(matching, n, d)
    return sent


def step(matching: StatisticsMatching, n: int, d: int) -> None:
    clean = torch.randn(n, d)
    matching(restored=clean + 0.3 * torch.randn(n, d), clean=clean)


def worker(rank: int, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    torch.save([measured(*case) for case in CASES], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def measure(workers: int) -> list[int]:
    """Bytes for each of CASES; the same on every worker."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(workers, folder), nprocs=workers)  # type: ignore[attr-defined]
        seen = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(workers)]
    if any(bytes_ != seen[0] for bytes_ in seen):
        raise SystemExit(f"workers sent different amounts: {seen}")
    return seen[0]


def main() -> None:
    by_workers = {workers: measure(workers) for workers in (1, 2, 4)}
    rows = []
    for index, case in enumerate(CASES):
        n, d, q, divergence, dtype = case
        bytes_ = [f"{by_workers[workers][index]:,}" for workers in by_workers]
        precision = str(dtype).removeprefix("torch.")
        rows.append([divergence, str(n), str(d), str(q), precision, *bytes_, f"{formula(*case):,}"])
    counts = [f"W = {workers}" for workers in by_workers]
    header = ["divergence", "N", "D", "q", "gathered as", *counts, "formula, W > 1"]
    print("Bytes a worker hands to collectives in a step, queues full\n")
    print(table(header, rows))
    different = [row for row in rows if {row[6], row[7]} != {row[8]} or row[5] != "0"]
    print("\nmeasured and formula agree" if not different else f"\nNOT as the formula says: {different}")


if __name__ == "__main__":
    main()
