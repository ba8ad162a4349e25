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
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from d2sm import distributed
from pipelines.recipes import recipe
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.benchmarks.steps import ROWS, measure, rows_of, settings
from tests.benchmarks.timing import machine, ms, table


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
        def call(*args: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            made = run(*args)
            spent += time.perf_counter() - start
            return made

        return call

    collectives: dict[str, Callable[..., Any]] = {
        "d2sm.matching.row_counts": distributed.row_counts,
        "d2sm.matching.gather_rows": distributed.gather_rows,
        "d2sm.divergence.sum_over_workers": distributed.sum_over_workers,
    }
    with (
        patch("ray.train.torch.get_device", lambda: torch.device("cpu")),
        patch("ray.train.torch.prepare_model", DistributedDataParallel),
    ):
        state = TrainState(config, 10**6)
    rows, seen = rows_of(config, rank), []
    with ExitStack() as patches:
        for place, run in collectives.items():
            patches.enter_context(patch(place, timed(run)))
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
