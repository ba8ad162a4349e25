"""What a training step of SADNet holds at most, with its activations kept, computed again, or of a few crops at a time.

    python -m tests.benchmarks.memory [--device cuda] [--crop 512] [--batch 2] [--time-crop 128] [--features NAME]

L1 + D2SM, float32. Memory: one step of a fresh process at `--crop`, what it holds at its fullest minus what it held
before; on the CPU all that the process holds (of Linux, its resident set), on a GPU what torch allocated. Time: at
`--time-crop`, all ways in turn in one process, medians, beside the step as it is without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Config
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.benchmarks.steps import rows_of
from tests.benchmarks.timing import interleaved, machine, ms, table

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "recompute": {"train.recompute": True},
    "accumulate, a crop at a time": {"train.accumulate": -1},
    "both": {"train.recompute": True, "train.accumulate": -1},
}


def state_and_row(way: str, crop: int, batch: int, features: str, device: torch.device) -> tuple[TrainState, Any]:
    """What a rank trains, and a step's crops."""
    changes = {name: batch if value == -1 else value for name, value in WAYS[way].items()}
    config = Config().replace(
        {"model.name": "sadnet", "data.crop_size": crop, "train.batch_size": batch, "loss.queue_size": 16}
        | {"loss.features": features, "loss.features_weights": "random"}
        | changes
    )
    return TrainState(config, 10**6, device=device), rows_of(config, 0)[0]


def held(device: torch.device, *, most: bool) -> float:
    """MiB held now, or at most so far."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if most else torch.cuda.memory_allocated)(device) / 2**20
    key = "VmHWM" if most else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(way: str, crop: int, batch: int, features: str, device: torch.device) -> float:
    """MiB that one step adds; called in a process of its own."""
    state, row = state_and_row(way, crop, batch, features, device)
    before = held(device, most=False)
    train_step(state, row, 0)
    return held(device, most=True) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--time-crop", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", default="vgg19.conv5_4")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.way:
        print(peak(args.way, args.crop, args.batch, args.features, device))
        return
    most = {}
    for way in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.memory", *sys.argv[1:], "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        most[way] = float(done.stdout.split()[-1])
    steps = {}
    for way in WAYS:
        state, row = state_and_row(way, args.time_crop, args.batch, args.features, device)
        steps[way] = lambda state=state, row=row: train_step(state, row, 0)  # type: ignore[misc]
    time = interleaved(steps, device, rounds=args.rounds, budget=120)
    print(
        f"{machine(device)}; SADNet, {args.batch} crops of {args.crop}, L1 + D2SM on {args.features}, float32; "
        f"time at {args.time_crop}, medians of {args.rounds}\n"
    )
    base = "as it is"
    rows = [
        [way, f"{most[way]:.0f}", f"{most[way] / most[base]:.2f}", ms(time[way]), f"{time[way] / time[base]:.2f}x"]
        for way in WAYS
    ]
    print(table(["train.", "MiB at most", "of all", "ms a step", "time"], rows))


if __name__ == "__main__":
    main()
