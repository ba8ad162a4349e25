"""The product that makes the kernels, in several ways: float32, TF32, and compensated products of half precision.

    python -m tests.benchmarks.products [--device cuda] [--rows 16] [--length 131072] [--queue 1024]

Prints for each way the largest error of a cosine against float64, and the relative errors of the divergence and of its
gradient, where restored and clean rows are equal, nearly equal (KL then cancels) and different. A way that is faster on
a GPU can become the way of `d2sm.divergence` if these errors are those of float32. Needs torch alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from d2sm import divergence
from d2sm.matching import StatisticsMatching
from tests.benchmarks.timing import interleaved, machine, ms, table

Product = Callable[[Tensor], Tensor]  # unit rows (2, N, D) -> cosines (2, N, n)
Way = Callable[[Tensor], Product]  # queues (2, n, D), which it keeps as its product needs them
SPREADS = (0.0, 1e-3, 1e-2, 0.5)  # difference of restored and clean, by the standard deviation of a feature


def float32(queues: Tensor) -> Product:
    """One product, as the library computes it."""
    return lambda rows: (queues @ rows.mT).mT


def pieces(queues: Tensor) -> Product:
    """The sum of products of pieces of D: what `d2sm.divergence` does on a GPU where few rows are long."""
    return lambda rows: _in_pieces(queues, rows).mT


def _in_pieces(queues: Tensor, rows: Tensor) -> Tensor:
    """(2, n, D), (2, N, D) -> (2, n, N) in float32: 32 pieces of long rows, 8 of others."""
    count = math.gcd(32 if rows.shape[2] >= divergence._LONG else 8, rows.shape[2])
    products = [
        _bmm(queue.unflatten(1, (count, -1)).transpose(0, 1), row.unflatten(1, (count, -1)).permute(1, 2, 0)).sum(0)
        for queue, row in zip(queues, rows, strict=True)
    ]
    return torch.stack(products)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """A product with sums and result in float32. A GPU multiplies bf16 as it is; for a CPU it is converted."""
    if a.dtype == torch.bfloat16 and a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())


def to_tf32(values: Tensor) -> Tensor:
    """float32 with the 10 bits of mantissa that TF32 units read, to the nearest."""
    drop = 23 - 10
    whole = values.contiguous().view(torch.int32)
    half = 1 << (drop - 1)
    return ((whole + half - 1 + ((whole >> drop) & 1)) >> drop << drop).view(torch.float32)


def to_bf16(values: Tensor) -> Tensor:
    """7 bits of mantissa, to the nearest."""
    return values.bfloat16()


def parts(values: Tensor, nearest: Callable[[Tensor], Tensor], count: int) -> list[Tensor]:
    """Terms of few bits that add up to the values, the largest first."""
    found = []
    for _ in range(count):
        found.append(nearest(values))
        values = values - found[-1].float()
    return found


def compensated(nearest: Callable[[Tensor], Tensor], count: int) -> Way:
    """The sum of the products of parts i and j with i + j < count; the parts of the queues are kept.

    Args:
        nearest: makes a part of numbers, the nearest that it can hold.
        count: of the parts of a number. 1: both factors are rounded, and nothing is compensated.
    """

    def keep(queues: Tensor) -> Product:
        of_queues = parts(queues, nearest, count)

        def product(rows: Tensor) -> Tensor:
            of_rows = parts(rows, nearest, count)
            total = torch.zeros(2, queues.shape[1], rows.shape[1], device=rows.device)
            for part in reversed(range(count)):  # the smallest first
                several = torch.cat(of_rows[: count - part], dim=1)  # each part of the queues is read once
                total += _in_pieces(of_queues[part], several).unflatten(2, (count - part, -1)).sum(2)
            return total.mT

        return product

    return keep


def on_tensor_cores(way: Way) -> Way:
    """The same way where float32 products are made by a GPU's TF32 units, which round their sums too."""

    def keep(queues: Tensor) -> Product:
        in_float32 = way(queues)

        def product(rows: Tensor) -> Tensor:
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return in_float32(rows)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before

        return product

    return keep


EXACT: dict[str, Way] = {"float32": float32, "float32 in pieces": pieces}
# On a CPU their factors are rounded but the products and sums are float32's: their times mean nothing there, and their
# errors are the least that they can have.
COARSE: dict[str, Way] = {"TF32": compensated(to_tf32, 1), "TF32, 3 products": compensated(to_tf32, 2)}
HALF: dict[str, Way] = {"bf16, 3 products": compensated(to_bf16, 2), "bf16, 6 products": compensated(to_bf16, 3)}


def ways(device: torch.device) -> dict[str, Way]:
    """Those whose time means something on this device."""
    if device.type != "cuda":
        return EXACT
    return EXACT | {name: on_tensor_cores(way) for name, way in COARSE.items()} | HALF


def pair(count: int, length: int, spread: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Restored and clean rows in float64."""
    clean = torch.randn(count, length, device=device, dtype=torch.float64)
    return clean + spread * torch.randn_like(clean), clean


def loss_of(way: Way | None, count: int, size: int, length: int, spread: float, device: torch.device) -> list[Tensor]:
    """Value and gradient with full queues; in float64 without a way."""
    torch.manual_seed(0)
    loss = StatisticsMatching(size)
    dtype = torch.float64 if way is None else torch.float32
    as_it_is = divergence.cosines

    def cosines(rows: Tensor, queues: Tensor) -> Tensor:
        return as_it_is(rows, queues) if way is None else way(queues)(rows)

    with patch.object(divergence, "cosines", cosines), patch("d2sm.matching.cosines", cosines):
        for _ in range(-(-size // count)):
            restored, clean = pair(count, length, spread, device)
            restored = restored.to(dtype).requires_grad_()
            value = loss(restored, clean.to(dtype))
        (gradient,) = torch.autograd.grad(value, restored)
    return [value.detach().double(), gradient.double()]


def largest_error(way: Way, rows: Tensor, queues: Tensor) -> float:
    """The largest error of a cosine against float64."""
    return (way(queues)(rows) - rows.double() @ queues.double().mT).abs().max().item()


def errors(way: Way, count: int, size: int, length: int, device: torch.device) -> list[str]:
    """Cells: the largest error of a cosine; value / gradient for every spread."""
    torch.manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(2, size, length, device=device, dtype=torch.float64), dim=2)
    rows, queues = unit[:, :count].float(), unit.float()
    cells = [f"{largest_error(way, rows, queues):.0e}"]
    for spread in SPREADS:
        wanted, found = (loss_of(each, count, size, length, spread, device) for each in (None, way))
        if spread == 0:  # value and gradient are 0
            cells.append(f"{found[0].abs().item():.0e} / {found[1].abs().max().item():.0e}")
            continue
        value = ((found[0] - wanted[0]).abs() / wanted[0]).item()
        gradient = ((found[1] - wanted[1]).norm() / wanted[1].norm()).item()
        cells.append(f"{value:.0e} / {gradient:.0e}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=131_072)
    parser.add_argument("--queue", type=int, default=64)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{machine(args.device)}; {args.rows} rows of {args.length}, queues of {args.queue}\n")
    rows, queues = (torch.randn(2, count, args.length, device=args.device) for count in (2 * args.rows, args.queue))
    table_rows = []
    timed = ways(args.device)
    for name, way in (COARSE | HALF | timed).items():
        passed = interleaved({"": partial(way(queues), rows)}, args.device, rounds=5)[""]
        cells = errors(way, args.rows, args.queue, args.length, args.device)
        table_rows.append([name, ms(passed) if name in timed else "", *cells])
    of_spread = ["equal: value / gradient, absolute", *(f"differ by {s:g}: value / gradient" for s in SPREADS[1:])]
    print(table(["product", "ms", "error of a cosine", *of_spread], table_rows))


if __name__ == "__main__":
    main()
