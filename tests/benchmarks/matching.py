"""What a step of StatisticsMatching takes beside that of another checkout: forward and backward, full queues.

    python -m tests.benchmarks.matching --against CHECKOUT [--rounds 15] [--device cuda]

Both are loaded into one process and called in turns on the same samples; the largest differences of values and of
gradients stand beside the times. The other checkout's d2sm needs no more than `StatisticsMatching(queue_size)`, which
takes restored and clean.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from d2sm import StatisticsMatching
from tests.benchmarks.timing import machine, ms, seconds, table

SHAPES = (  # q, D, N
    (512, 2048, 16),
    (1024, 1280, 64),
    (256, 131_072, 16),
    (1024, 131_072, 32),
    (4096, 8192, 64),
    (4096, 8192, 512),
)
FILL = 256  # samples a call while the queues are filled


def class_of(checkout: Path) -> Any:
    """StatisticsMatching of another checkout, whose modules stay its own: this one's are found again afterwards."""
    own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "d2sm"}
    for name in own:
        del sys.modules[name]
    sys.path.insert(0, str(checkout.absolute()))
    try:
        other = importlib.import_module("d2sm")
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.partition(".")[0] == "d2sm"]:
            del sys.modules[name]
        sys.modules |= own
    if Path(other.__file__ or "").resolve().is_relative_to(checkout.resolve()):
        return other.StatisticsMatching
    raise SystemExit(f"--against={checkout}: holds no d2sm; give the folder of a checkout")


class Step:
    """One step of a matching on new samples; keeps its value and gradient."""

    def __init__(self, matching: Any, restored: Tensor, clean: Tensor) -> None:
        self.matching, self.restored, self.clean = matching, restored.clone().requires_grad_(), clean

    def __call__(self) -> None:
        value = self.matching(restored=self.restored, clean=self.clean)
        value.backward()
        assert self.restored.grad is not None
        self.value, self.gradient = float(value.detach()), self.restored.grad


def row(other: Any, q: int, width: int, count: int, rounds: int, device: torch.device) -> list[str]:
    torch.manual_seed(0)
    matchings = {"here": StatisticsMatching(q).to(device), "there": other(q).to(device)}

    def samples(number: int) -> tuple[Tensor, Tensor]:
        clean = torch.randn(number, width, device=device)
        return clean + 0.3 * torch.randn_like(clean), clean

    for start in range(0, q, FILL):
        restored, clean = samples(min(FILL, q - start))
        for matching in matchings.values():
            matching(restored=restored, clean=clean)
    taken: dict[str, list[float]] = {name: [] for name in matchings}
    found: dict[str, tuple[float, Tensor]] = {}
    differences = [0.0, 0.0]
    for index in range(rounds + 1):
        restored, clean = samples(count)
        for name in list(matchings)[:: 1 if index % 2 else -1]:
            step = Step(matchings[name], restored, clean)
            time = seconds(step, device)
            if index:  # the first is not measured
                taken[name].append(time)
            found[name] = step.value, step.gradient
        (value, gradient), (value_there, gradient_there) = found["here"], found["there"]
        differences[0] = max(differences[0], abs(value - value_there) / abs(value_there))
        error = (gradient - gradient_there).norm() / gradient_there.norm()
        differences[1] = max(differences[1], float(error))
    ratios = [here / there for here, there in zip(taken["here"], taken["there"], strict=True)]
    middle = sorted(ratios)[len(ratios) // 4 : len(ratios) - len(ratios) // 4]
    return [
        f"q {q}, D {width}, {count} new", ms(median(taken["there"])), ms(median(taken["here"])),
        f"{median(ratios):.2f} ({middle[0]:.2f} to {middle[-1]:.2f})", *(f"{one:.0e}" for one in differences),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device, other = torch.device(args.device), class_of(args.against)
    rows = [row(other, *shape, args.rounds, device) for shape in SHAPES]
    print(f"{machine(device)}; medians of {args.rounds} rounds in turns (the middle half of the ratios)\n")
    print(table(["", "there, ms", "here, ms", "here / there", "value differs", "gradient differs"], rows))


if __name__ == "__main__":
    main()
