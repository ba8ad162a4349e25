"""Matching alone: its time with full queues, and its error against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from d2sm import StatisticsMatching
from tests.benchmarks.products import largest_error, ways
from tests.benchmarks.queues import fill
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


@dataclass(frozen=True)
class Work:
    """What a step of matching has to do at least, with full queues.

    Attributes:
        bytes: moved between memory and processor: both queues read once for the kernels, that of the restored samples
            once more for the gradient, the rows that enter written, in float32; kernels and their sums, which a single
            pass over them could leave in registers, are not counted.
        flops: of the products: entering and leaving rows with both queues, and the gradient.
    """

    bytes: int
    flops: int


def roofline(count: int, length: int, size: int) -> Work:
    """For N new samples of D numbers and queues of q."""
    queue = 4 * size * length
    return Work(bytes=3 * queue + 2 * 4 * 4 * count * length, flops=2 * size * length * (2 * 2 * count + count))


def copied(given: Options) -> float:
    """Bytes a second that the memory was seen to read and write in a large copy."""
    source = torch.empty(2**22 if given.small else 2**28, device=given.device)
    target = torch.empty_like(source)
    passed = interleaved({"": lambda: target.copy_(source)}, given.device, rounds=10)[""]
    return 2 * source.nbytes / passed


def products(loss: StatisticsMatching, count: int, name: str) -> None:
    """The product that makes the kernels, in the ways of `tests.benchmarks.products`: its time and its error."""
    queues = loss.memory.filled
    rows = queues[:, : 2 * count].clone()
    for which, way in ways(rows.device).items():
        passed = interleaved({"": partial(way(queues), rows)}, rows.device, rounds=10)[""]
        record("matching", f"{name}: product {which}, ms", passed * 1e3)
        # Of few stored rows: float64 may be slow, and needs memory.
        record("matching", f"{name}: product {which}, error of a cosine", largest_error(way, rows, queues[:, :512]))


def compiled(count: int, length: int, size: int, given: Options) -> None:
    """The time with compiled arithmetic; or that it cannot be had here. `modes` calls it: compiling takes long."""
    loss = StatisticsMatching(size)
    loss(*pair(count, length, 0.3, given.device))
    fill(loss)
    loss.compile(fullgraph=True, dynamic=False, backend="aot_eager" if given.small else "inductor")
    try:
        taken = interleaved({"": step(loss, *pair(count, length, 0.3, given.device))}, given.device, rounds=30)
    except Exception as error:  # whatever torch.compile lacks on this machine
        print(f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}", flush=True)
        return
    record("modes", f"N {count}, D {length}, q {size}: matching with compiled arithmetic, ms", taken[""] * 1e3)


def main() -> None:
    given = options(__doc__)
    torch.manual_seed(0)
    rate = copied(given)
    record("matching", "memory: GB a second, read and written by a copy", rate / 1e9)
    for count, length, size in SMALL if given.small else SHAPES:
        loss = StatisticsMatching(size)
        loss(*pair(count, length, 0.3, given.device))
        fill(loss)
        taken = interleaved({"": step(loss, *pair(count, length, 0.3, given.device))}, given.device, rounds=30)
        name = f"N {count}, D {length}, q {size}"
        record("matching", f"{name}: matching, ms", taken[""] * 1e3)
        work = roofline(count, length, size)
        record("matching", f"{name}: GB read and written at least", work.bytes / 1e9)
        record("matching", f"{name}: ms at the memory's measured rate", work.bytes / rate * 1e3)
        record("matching", f"{name}: GFLOP of products in float32", work.flops / 1e9)
        record("matching", f"{name}: TFLOP a second", work.flops / taken[""] / 1e12)
        products(loss, count, name)
        del loss
    shapes = SMALL if given.small else SHAPES
    count, length, size = shapes[0]
    size = min(size, 256)  # in float64 too
    for spread in SPREADS:
        value, gradient = errors(count, length, size, spread, given)
        name = f"N {count}, D {length}, q {size}, restored differs by {spread:g}"
        record("matching", f"{name}: relative error of the value", value)
        record("matching", f"{name}: relative error of the gradient", gradient)


if __name__ == "__main__":
    main()
