"""FFDNet: its size, its shape contract and what a pixel depends on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from d2sm.models import FFDNet
from tests.helpers.networks import stirred


def sigmas(*values: float) -> Tensor:
    return torch.tensor(values)


def test_published_size_has_852108_parameters() -> None:
    assert sum(p.numel() for p in FFDNet().parameters()) == 852_108


def test_published_size_has_the_published_receptive_field_and_attributes() -> None:
    model = stirred(FFDNet())
    assert (model.receptive_field, model.stride, model.blind) == (50, 2, False)


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 7), (33, 17), (16, 16)])
def test_any_size_in_same_size_out(size: tuple[int, int]) -> None:
    restored = FFDNet(width=4, depth=3)(torch.rand(2, 3, *size), sigmas(25.0, 50.0))
    assert restored.shape == (2, 3, *size)


def test_odd_size_equals_replicated_even_size() -> None:
    model = stirred(FFDNet(width=4, depth=3))
    odd = torch.rand(1, 3, 9, 11)
    even = torch.cat([odd, odd[..., -1:]], dim=-1)
    even = torch.cat([even, even[..., -1:, :]], dim=-2)
    torch.testing.assert_close(model(odd, sigmas(25.0)), model(even, sigmas(25.0))[..., :9, :11])


@pytest.mark.parametrize("depth", [2, 5])
def test_a_pixel_depends_on_its_receptive_field_exactly(depth: int) -> None:
    # Every weight positive, so that no path through the network is lost to a ReLU or a cancellation.
    model = stirred(FFDNet(width=4, depth=depth))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    noisy = torch.rand(1, 3, 64, 64, requires_grad=True)
    row, column = 31, 32
    model(noisy, sigmas(25.0))[0, 0, row, column].backward()
    assert noisy.grad is not None
    touched = noisy.grad[0].abs().sum(0).nonzero()
    (top, left), (bottom, right) = touched.min(0).values.tolist(), touched.max(0).values.tolist()
    assert bottom - top + 1 == right - left + 1 == model.receptive_field
    assert len(touched) == model.receptive_field**2
    assert max(row - top, bottom - row, column - left, right - column) <= model.receptive_field // 2


def test_published_size_touches_nothing_outside_its_receptive_field() -> None:
    model = stirred(FFDNet())
    noisy = torch.rand(1, 3, 80, 80, requires_grad=True)
    model(noisy, sigmas(25.0))[0, :, 40, 41].sum().backward()
    assert noisy.grad is not None
    touched = noisy.grad[0].abs().sum(0).nonzero()
    assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [50, 50]


def test_each_image_is_restored_at_its_own_sigma() -> None:
    model = stirred(FFDNet(width=8, depth=3))
    noisy = torch.rand(1, 3, 12, 12).expand(2, -1, -1, -1)
    both = model(noisy, sigmas(10.0, 60.0))
    torch.testing.assert_close(both[1:], model(noisy[1:], sigmas(60.0)), rtol=0, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-4


def test_signal_survives_the_depth_at_the_start() -> None:
    torch.manual_seed(0)
    restored = FFDNet()(torch.rand(1, 3, 32, 32), sigmas(25.0))
    assert restored.std() > 0.05


def test_an_identity_body_gives_the_image_back() -> None:
    # With the identity as its only content, folding and unfolding must cancel.
    model = stirred(FFDNet(width=12, depth=2))
    with torch.no_grad():
        for layer in (model.body[0], model.body[2]):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[torch.arange(12), torch.arange(12), 1, 1] = 1
    clean = torch.rand(1, 3, 10, 14)
    torch.testing.assert_close(model(clean, sigmas(0.0)), clean)


@pytest.mark.parametrize(
    ("noisy", "sigma", "message"),
    [
        (torch.rand(3, 8, 8), sigmas(1.0), "FFDNet: noisy"),
        (torch.rand(1, 1, 8, 8), sigmas(1.0), "FFDNet: noisy"),
        (torch.rand(2, 3, 8, 8), sigmas(1.0), r"FFDNet: sigma .*\(1,\).*\(2,\)"),
    ],
)
def test_wrong_shapes_are_named(noisy: Tensor, sigma: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FFDNet(width=4, depth=2)(noisy, sigma)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="depth=1"):
        FFDNet(depth=1)


@pytest.mark.parametrize("depth", [2, 7])
def test_a_fresh_network_repeats_its_input_and_learns_in_every_weight(depth: int) -> None:
    model = FFDNet(width=16, depth=depth)
    noisy = torch.rand(1, 3, 12, 14)  # ReLU keeps it, being positive
    torch.testing.assert_close(model(noisy, sigmas(25.0)), noisy)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):  # what leads to the last layer is heard from the second step on
        optimizer.zero_grad()
        (model(noisy, sigmas(25.0)) - torch.rand(1, 3, 12, 14)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
