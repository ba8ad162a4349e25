"""Matching alone: its time with full queues, and its error against float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from d2sm import StatisticsMatching
from tests.benchmarks.step_parts import fill
from tests.benchmarks.timing import interleaved
from tests.gpu.options import Options, options
from tests.gpu.results import record

SHAPES = [(16, 131_072, 1024), (256, 8192, 4096), (512, 8192, 16_384)]  # N, D, q
SMALL = [(4, 256, 16), (8, 64, 32)]
SPREADS = (0.5, 0.01)  # difference of restored and clean features, by their standard deviation


def pair(count: int, length: int, spread: float, device: torch.device) -> tuple[Tensor, Tensor]:
    clean = torch.randn(count, length, device=device)
    return clean + spread * torch.randn_like(clean), clean


def step(loss: StatisticsMatching, restored: Tensor, clean: Tensor) -> Callable[[], None]:
    leaf = restored.requires_grad_()

    def call() -> None:
        leaf.grad = None
        loss(leaf, clean).backward()

    return call


def errors(count: int, length: int, size: int, spread: float, given: Options) -> tuple[float, float]:
    """Relative errors of value and gradient, in float32 against float64, with full queues."""
    results = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        loss = StatisticsMatching(size)
        for _ in range(-(-size // count)):
            restored, clean = pair(count, length, spread, given.device)
            restored = restored.to(dtype).requires_grad_()
            value = loss(restored, clean.to(dtype))
        (gradient,) = torch.autograd.grad(value, restored)
        results.append((value.double(), gradient.double()))
    (exact, wanted), (value, gradient) = results
    return ((value - exact).abs() / exact).item(), ((gradient - wanted).norm() / wanted.norm()).item()


def main() -> None:
    given = options(__doc__)
    torch.manual_seed(0)
    for count, length, size in SMALL if given.small else SHAPES:
        loss = StatisticsMatching(size)
        loss(*pair(count, length, 0.3, given.device))
        fill(loss)
        taken = interleaved({"": step(loss, *pair(count, length, 0.3, given.device))}, given.device, rounds=30)
        record("matching", f"N {count}, D {length}, q {size}: matching, ms", taken[""] * 1e3)
        del loss
    count, length, size = (SMALL if given.small else SHAPES)[0]
    size = min(size, 256)  # in float64 too
    for spread in SPREADS:
        value, gradient = errors(count, length, size, spread, given)
        name = f"N {count}, D {length}, q {size}, restored differs by {spread:g}"
        record("matching", f"{name}: relative error of the value", value)
        record("matching", f"{name}: relative error of the gradient", gradient)


if __name__ == "__main__":
    main()
