"""The product that makes the kernels, in several ways: float32, TF32, and compensated products of half precision.

    python -m tests.benchmarks.products [--device cuda] [--rows 16] [--length 131072] [--queue 1024]

Prints for each way the largest error of a cosine against float64, and the relative errors of the divergence and of its
gradient, where restored and clean rows are equal, nearly equal (KL then cancels) and different. A way that is faster on
a GPU can become the way of `d2sm.divergence` if these errors are those of float32. Needs torch alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from d2sm import divergence
from d2sm.matching import StatisticsMatching
from tests.benchmarks.timing import interleaved, machine, ms, table

Way = Callable[[Tensor, Tensor], Tensor]  # unit rows (2, N, D), queues (2, n, D) -> cosines (2, N, n)
SPREADS = (0.0, 1e-3, 1e-2, 0.5)  # difference of restored and clean, by the standard deviation of a feature


def float32(rows: Tensor, queues: Tensor) -> Tensor:
    """One product, as the library computes it."""
    return (queues @ rows.mT).mT


def pieces(rows: Tensor, queues: Tensor, count: int = 32) -> Tensor:
    """The sum of products of `count` pieces of D: what `d2sm.divergence` does on a GPU where few rows are long."""
    products = [divergence._in_pieces(queue, row, count) for queue, row in zip(queues, rows, strict=True)]
    return torch.stack(products).mT


def rounded(values: Tensor, bits: int) -> Tensor:
    """float32 with so many bits of mantissa, to the nearest: 10 for TF32, 7 for bf16."""
    drop = 23 - bits
    whole = values.contiguous().view(torch.int32)
    half = 1 << (drop - 1)
    return ((whole + half - 1 + ((whole >> drop) & 1)) >> drop << drop).view(torch.float32)


def parts(values: Tensor, bits: int, count: int) -> list[Tensor]:
    """Terms of so many bits that add up to the values, the largest first."""
    found = []
    for _ in range(count):
        found.append(rounded(values, bits))
        values = values - found[-1]
    return found


def split_products(rows: Tensor, queues: Tensor, *, bits: int, count: int, terms: int) -> Tensor:
    """The sum of the products of parts i and j with i + j < terms, the smallest first, each summed in pieces of D."""
    of_rows, of_queues = parts(rows, bits, count), parts(queues, bits, count)
    pairs = [(i, j) for i in range(count) for j in range(count) if i + j < terms]
    total: Tensor | None = None
    for i, j in sorted(pairs, key=sum, reverse=True):
        product = pieces(of_rows[i], of_queues[j])
        total = product if total is None else total + product
    assert total is not None
    return total


def tf32(rows: Tensor, queues: Tensor) -> Tensor:
    """Both factors rounded to TF32."""
    return pieces(rounded(rows, 10), rounded(queues, 10))


def tf32_compensated(rows: Tensor, queues: Tensor) -> Tensor:
    """Three products of TF32 parts: large x large, large x small, small x large."""
    return split_products(rows, queues, bits=10, count=2, terms=2)


def bf16_compensated(rows: Tensor, queues: Tensor) -> Tensor:
    """Three products of two bf16 parts."""
    return split_products(rows, queues, bits=7, count=2, terms=2)


def bf16_in_three(rows: Tensor, queues: Tensor) -> Tensor:
    """Six products of three bf16 parts, which hold all 24 bits of float32."""
    return split_products(rows, queues, bits=7, count=3, terms=3)


def on_tensor_cores(way: Way) -> Way:
    """The same way where float32 products are made by a GPU's TF32 units, which round their sums too."""

    def product(rows: Tensor, queues: Tensor) -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return way(rows, queues)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product


EXACT: dict[str, Way] = {"float32": float32, "float32 in 32 pieces": pieces}
# On a CPU their factors are rounded but the products and sums are float32's: their times mean nothing there, and their
# errors are the least that they can have.
COARSE: dict[str, Way] = {"TF32": tf32, "TF32, 3 products": tf32_compensated}
HALF: dict[str, Way] = {"bf16, 3 products": bf16_compensated, "bf16, 6 products": bf16_in_three}


def ways(device: torch.device) -> dict[str, Way]:
    """Those whose time means something on this device."""
    coarse = {name: on_tensor_cores(way) for name, way in COARSE.items()} if device.type == "cuda" else {}
    return EXACT | coarse


def pair(count: int, length: int, spread: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Restored and clean rows in float64."""
    clean = torch.randn(count, length, device=device, dtype=torch.float64)
    return clean + spread * torch.randn_like(clean), clean


def loss_of(way: Way | None, count: int, size: int, length: int, spread: float, device: torch.device) -> list[Tensor]:
    """Value and gradient with full queues; in float64 without a way."""
    torch.manual_seed(0)
    loss = StatisticsMatching(size)
    dtype = torch.float64 if way is None else torch.float32
    with (
        patch.object(divergence, "cosines", way or divergence.cosines),
        patch("d2sm.matching.cosines", way or divergence.cosines),
    ):
        for _ in range(-(-size // count)):
            restored, clean = pair(count, length, spread, device)
            restored = restored.to(dtype).requires_grad_()
            value = loss(restored, clean.to(dtype))
        (gradient,) = torch.autograd.grad(value, restored)
    return [value.detach().double(), gradient.double()]


def errors(way: Way, count: int, size: int, length: int, device: torch.device) -> list[str]:
    """Cells: the largest error of a cosine; value / gradient for every spread."""
    torch.manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(2, size, length, device=device, dtype=torch.float64), dim=2)
    rows, queues = unit[:, :count].float(), unit.float()
    exact = rows.double() @ queues.double().mT
    cells = [f"{(way(rows, queues) - exact).abs().max().item():.0e}"]
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
        passed = interleaved({"": lambda way=way: way(rows, queues)}, args.device, rounds=5)[""]  # type: ignore[misc]
        cells = errors(way, args.rows, args.queue, args.length, args.device)
        table_rows.append([name, ms(passed) if name in timed else "", *cells])
    of_spread = ["equal: value / gradient, absolute", *(f"differ by {s:g}: value / gradient" for s in SPREADS[1:])]
    print(table(["product", "ms", "error of a cosine", *of_spread], table_rows))


if __name__ == "__main__":
    main()
