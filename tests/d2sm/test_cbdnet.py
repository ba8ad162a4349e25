"""CBDNet: its size, its shape contract, its estimate of the noise, and what a pixel depends on."""

from __future__ import annotations

import pytest
import torch

from d2sm.inference import restore
from d2sm.models import CBDNet
from tests.helpers.networks import averaging, reach, stirred


@pytest.fixture(scope="module")
def model() -> CBDNet:
    torch.manual_seed(0)
    return stirred(CBDNet())


def test_published_size_has_4365382_parameters() -> None:
    with torch.device("meta"):
        model = CBDNet()
    assert sum(p.numel() for p in model.parameters()) == 4_365_382
    assert sum(p.numel() for p in model.estimator.parameters()) == 29_507
    assert (model.blind, model.stride, model.receptive_field) == (True, 4, 94)


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (8, 7), (33, 17), (16, 16)])
def test_any_size_in_same_size_out(model: CBDNet, size: tuple[int, int]) -> None:
    noisy = torch.rand(2, 3, *size)
    restored, estimate = model.with_estimate(noisy)
    assert restored.shape == estimate.shape == noisy.shape
    assert torch.equal(model(noisy), restored)


def test_odd_size_equals_replicated_multiple_of_four(model: CBDNet) -> None:
    odd = torch.rand(1, 3, 9, 11)
    even = torch.cat([odd, odd[..., -1:]], dim=-1)
    even = torch.cat([even, *[even[..., -1:, :]] * 3], dim=-2)
    assert even.shape[-2:] == (12, 12)
    torch.testing.assert_close(model(odd), model(even)[..., :9, :11], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("column", [56, 57, 58, 59])
def test_a_pixel_depends_on_its_receptive_field_exactly(column: int) -> None:
    assert reach(averaging(CBDNet()), width=120, column=column) == CBDNet.receptive_field


def test_tiled_equals_whole(model: CBDNet) -> None:
    noisy = torch.rand(1, 3, 13, 333)
    whole = restore(model, noisy)
    torch.testing.assert_close(restore(model, noisy, tile=50), whole, rtol=0, atol=2e-6 * float(whole.abs().max()))


def test_a_fresh_network_repeats_its_input_and_learns_in_every_weight() -> None:
    model, noisy = CBDNet(), torch.rand(2, 3, 16, 20)
    torch.testing.assert_close(model(noisy), noisy)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):  # what leads to the last layer is heard from the second step on
        optimizer.zero_grad()
        (model(noisy) - torch.rand(2, 3, 16, 20)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_no_channel_of_a_fresh_estimate_is_dead() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model = CBDNet()
        estimate = model.with_estimate(torch.rand(1, 3, 24, 24))[1]
        assert ((estimate > 0).float().mean((0, 2, 3)) > 0.9).all()
        assert 0.02 < estimate.mean() < 0.5


def test_the_estimate_is_a_standard_deviation(model: CBDNet) -> None:
    assert model.with_estimate(torch.randn(1, 3, 16, 16))[1].min() >= 0
