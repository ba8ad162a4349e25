"""SADNet: its size, its shape contract, its deformable convolutions, and what a pixel depends on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from d2sm.inference import restore
from d2sm.models import SADNet
from d2sm.models.sadnet import _Adaptive
from tests.helpers.networks import averaging, reach, stirred

SHIFTS = 144  # of the 216 channels; the last 72 are masks


def adaptive(model: SADNet) -> list[_Adaptive]:
    return [module for module in model.modules() if isinstance(module, _Adaptive)]


@pytest.fixture(scope="module")
def model() -> SADNet:
    """With offsets of some pixels, as a trained one has."""
    torch.manual_seed(0)
    model = stirred(SADNet())
    with torch.no_grad():
        for block in adaptive(model):
            block.offsets.weight.mul_(0.1)
    return model


def test_published_size_has_4234723_parameters() -> None:
    with torch.device("meta"):
        model = SADNet()
    assert sum(p.numel() for p in model.parameters()) == 4_234_723
    assert (model.blind, model.stride, model.receptive_field) == (True, 8, 268)


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 9), (33, 17), (16, 16)])
def test_any_size_in_same_size_out(model: SADNet, size: tuple[int, int]) -> None:
    assert model(torch.rand(2, 3, *size)).shape == (2, 3, *size)


def test_odd_size_equals_replicated_multiple_of_eight(model: SADNet) -> None:
    odd = torch.rand(1, 3, 13, 15)
    even = torch.cat([odd, odd[..., -1:]], dim=-1)
    even = torch.cat([even, *[even[..., -1:, :]] * 3], dim=-2)
    assert even.shape[-2:] == (16, 16)
    torch.testing.assert_close(model(odd), model(even)[..., :13, :15], rtol=1e-5, atol=1e-4)


def test_fresh_offsets_are_zero_and_masks_one_half() -> None:
    block = _Adaptive(16, first=True)
    torch.nn.init.zeros_(block.offsets.weight)  # as SADNet does, see below
    torch.nn.init.zeros_(block.offsets.bias)
    x = torch.randn(2, 16, 9, 11)
    plain = 0.5 * F.conv2d(x, block.deform.weight, padding=1) + block.deform.bias.view(-1, 1, 1)
    wanted = x + block.second(F.leaky_relu(plain, 0.2))
    torch.testing.assert_close(block(x)[0], wanted, rtol=1e-5, atol=1e-5)
    fresh = adaptive(SADNet())
    assert len(fresh) == 4
    assert not any(p.any() for block in fresh for p in block.offsets.parameters())


def test_shifts_come_before_masks_and_are_in_pixels() -> None:
    """One pixel down for every tap, half the taps' masks closed: the convolution of the moved image, without them."""
    block = _Adaptive(16)
    x = torch.randn(1, 16, 12, 13)
    places = torch.zeros(1, 216, 12, 13)
    places[:, 0:SHIFTS:2] = 1.0  # (down, right) for each tap of each group
    open_taps = torch.arange(72) % 9 < 4
    places[:, SHIFTS:] = torch.where(open_taps, 40.0, -40.0).view(1, -1, 1, 1)
    moved = torch.zeros_like(x)
    moved[:, :, :-1] = x[:, :, 1:]
    taps = (torch.arange(9) < 4).view(1, 1, 3, 3)
    wanted = F.conv2d(moved, block.deform.weight * taps, block.deform.bias, padding=1)
    found = block._deformed(x, places)
    # The first row's upper taps lie in the padding of the moved image, but within the image itself.
    torch.testing.assert_close(found[:, :, 1:], wanted[:, :, 1:], rtol=1e-5, atol=1e-5)


def test_coarser_offsets_are_enlarged_and_doubled() -> None:
    block, seen = _Adaptive(16), []
    assert block.refine is not None
    block.refine.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    coarser = torch.arange(12.0).view(1, 1, 3, 4).expand(1, 32, 3, 4)
    block(torch.randn(1, 16, 6, 8), coarser)
    doubled = seen[0][:, 32:]
    assert doubled.shape == (1, 32, 6, 8)
    # Bilinear in between: the second fine pixel of a row lies a quarter of the way to the next coarse one.
    torch.testing.assert_close(doubled[0, 0, 0, :4], 2 * torch.tensor([0.0, 0.25, 0.75, 1.25]))


@pytest.mark.parametrize("column", [168, 170, 172, 175])
def test_a_pixel_depends_on_its_receptive_field_exactly_at_zero_offsets(column: int) -> None:
    model = averaging(SADNet())
    with torch.no_grad():
        for block in adaptive(model):
            block.offsets.weight[:SHIFTS] = 0  # the masks still carry what the offset blocks see
    assert reach(model, width=344, column=column) == SADNet.receptive_field


def test_tiled_equals_whole_also_with_offsets(model: SADNet) -> None:
    model, noisy, shifts = copy.deepcopy(model).double(), torch.rand(1, 3, 8, 720, dtype=torch.float64), []
    hooks = [
        block.offsets.register_forward_hook(lambda module, inputs, out: shifts.append(out[:, :SHIFTS].abs().max()))
        for block in adaptive(model)
    ]
    whole = restore(model, noisy)
    for hook in hooks:
        hook.remove()
    assert max(shifts) > 1  # there is something to test
    assert sum(scale * shift for scale, shift in zip((8, 4, 2, 1), shifts, strict=True)) < SADNet.receptive_field / 2
    torch.testing.assert_close(restore(model, noisy, tile=320), whole, rtol=0, atol=1e-10)  # of values up to 50


def test_a_fresh_network_repeats_its_input_and_learns_in_every_weight() -> None:
    model, noisy = SADNet(), torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(model(noisy), noisy)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):  # the last layer is heard at once, what leads to it then, what leads to the offsets last
        optimizer.zero_grad()
        (model(noisy) - torch.rand(2, 3, 16, 24)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_runs_in_bfloat16() -> None:
    """The deformable convolution, which knows no bfloat16, included."""
    model, noisy = SADNet(), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        restored = model(noisy)
    restored.float().mean().backward()
    torch.testing.assert_close(restored.float(), noisy, rtol=0.01, atol=0.01)
