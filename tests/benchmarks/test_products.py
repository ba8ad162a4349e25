"""The products of `tests.benchmarks.products`: their errors, and what a GPU's are made of."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.benchmarks.products import COARSE, EXACT, HALF, _in_pieces, largest_error, loss_of, parts, to_bf16, to_tf32


def units(count: int, length: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(2, count, length), dim=2)


def test_parts_add_up() -> None:
    values = torch.randn(1000)
    for nearest, count, bits in ((to_bf16, 1, 8), (to_bf16, 2, 16), (to_bf16, 3, 24), (to_tf32, 2, 22)):
        left = values - sum(part.float() for part in parts(values, nearest, count))
        assert (left.abs() <= values.abs() * 2.0**-bits).all(), (nearest, count)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("float32", 0, 1e-6), ("float32 in pieces", 0, 5e-7), ("TF32", 2e-6, 5e-5), ("TF32, 3 products", 0, 5e-7),
        ("bf16, 3 products", 2e-7, 5e-6), ("bf16, 6 products", 0, 5e-7),
    ],
)  # fmt: skip
def test_errors_of_cosines(name: str, least: float, most: float) -> None:
    queues = units(48, 4096)
    assert least <= largest_error((EXACT | COARSE | HALF)[name], queues[:, :8], queues) <= most


def test_bf16_products_give_zero_where_restored_is_clean_and_float32_s_value_elsewhere() -> None:
    way, device = HALF["bf16, 3 products"], torch.device("cpu")
    value, gradient = loss_of(way, 8, 32, 1024, 0.0, device)
    assert value == 0 and not gradient.any()
    (exact, wanted), (value, gradient) = (loss_of(each, 8, 32, 1024, 0.5, device) for each in (None, way))
    assert value == pytest.approx(exact.item(), rel=1e-4)
    assert (gradient - wanted).norm() < 1e-3 * wanted.norm()


def test_a_gpu_multiplies_bf16_and_adds_in_float32() -> None:
    """Shapes and types alone: fake tensors need no GPU."""
    with FakeTensorMode():
        rows, queues = (torch.empty(2, count, 64, dtype=torch.bfloat16, device="cuda") for count in (3, 5))
        found = _in_pieces(queues, rows)
        assert (found.shape, found.dtype, found.device.type) == ((2, 5, 3), torch.float32, "cuda")
