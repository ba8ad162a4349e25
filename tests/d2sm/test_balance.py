"""GradientBalance: the gradient has the ratio asked for, whatever the losses are; nothing else about it changes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2sm import D2SMLoss
from d2sm.balance import GradientBalance
from tests.helpers.process_group import batch_of, on_ranks, slice_of, small_network, small_phi

STEPS = 5


def gradient(value: Tensor, by: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, by, retain_graph=True)
    return found


def pair(restored: Tensor, clean: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Two losses; from step to step the second one's gradient changes by a factor of 100 and more."""
    return (restored - clean).abs().mean(), 10.0 ** (-2 * step) * (restored.sin() - clean).pow(4).mean()


def images(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    restored, clean = torch.rand(2, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return restored.requires_grad_(), clean


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_ratio_of_the_gradients_is_the_one_asked_for(momentum: float) -> None:
    """Against two separate passes, to 1e-9; with momentum, the lengths are those of the running mean of squares."""
    balance, first, second, total_weight = GradientBalance(0.3, momentum), 0.0, 0.0, 0.0
    for step in range(STEPS):
        restored, clean = images(step)
        g, h = (gradient(loss, restored) for loss in pair(restored, clean, step))
        first = momentum * first + (1 - momentum) * g.square().sum().item()
        second = momentum * second + (1 - momentum) * h.square().sum().item()
        total_weight = momentum * total_weight + (1 - momentum)
        scale = 0.3 * ((first / total_weight) / (second / total_weight)) ** 0.5

        total = balance(restored, *pair(restored, clean, step))
        total.backward()
        assert restored.grad is not None
        torch.testing.assert_close(restored.grad, g + scale * h, rtol=1e-9, atol=0)
        reference, other = pair(restored, clean, step)
        assert total.item() == pytest.approx((reference + scale * other).item(), rel=1e-9)
        assert balance.scale.item() == pytest.approx(scale, rel=1e-9)
        if momentum == 0 or step == 0:
            assert (restored.grad - g).norm().item() == pytest.approx(0.3 * g.norm().item(), rel=1e-9)


def test_a_sudden_long_gradient_is_bounded() -> None:
    """At most 1 / sqrt(1 - momentum) times what was asked for, also where the first step had nearly none."""
    balance = GradientBalance(1.0)
    for factor in (1e-12, 1.0, 1e-6, 1e6, 1.0):
        restored, clean = images(0)
        g = gradient((restored - clean).abs().mean(), restored)
        balance(restored, (restored - clean).abs().mean(), factor * restored.square().mean()).backward()
        assert restored.grad is not None
        assert (restored.grad - g).norm() <= 1.0001 * g.norm() / 0.1**0.5


def test_a_loss_without_gradient_and_one_that_is_not_finite() -> None:
    balance = GradientBalance(2.0)
    restored, clean = images(1)
    total = balance(restored, (restored - clean).abs().mean(), 0 * restored.sum())
    total.backward()
    assert balance.scale.item() == 1 and restored.grad is not None and restored.grad.isfinite().all()
    balance(restored, (restored - clean).abs().mean(), restored.square().sum())
    before = balance.scale
    balance(restored, (restored - clean).abs().mean(), float("nan") * restored.sum())
    assert torch.equal(balance.scale, before)


def test_losses_with_a_part_in_common() -> None:
    """As where both are taken of the clamped image: the gradient is that of the two losses of separate graphs."""
    restored, clean = images(3)
    separate, shared = GradientBalance(0.5), GradientBalance(0.5)
    clamped = (restored * 1.5).clamp(0, 1)
    shared(restored, (clamped - clean).abs().mean(), (clamped - clean).square().mean()).backward()
    assert restored.grad is not None
    found, restored.grad = restored.grad, None
    first, second = ((restored * 1.5).clamp(0, 1) - clean for _ in range(2))
    separate(restored, first.abs().mean(), second.square().mean()).backward()
    assert torch.equal(found, restored.grad) and found.any()


def test_the_ratio_is_exact_from_the_first_step_in_which_d2sm_has_a_gradient() -> None:
    """One crop a step: with two samples or fewer D2SM's gradient is 0, and rounding is not scaled to the ratio."""
    balance, loss, lengths = GradientBalance(0.7), D2SMLoss(small_phi().float(), 16), []
    for step in range(4):
        restored, clean = (x.detach()[:1].float() for x in images(step))
        restored.requires_grad_()
        g = gradient((restored - clean).abs().mean(), restored)
        balance(restored, (restored - clean).abs().mean(), loss(restored, clean)).backward()
        assert restored.grad is not None
        lengths.append(((restored.grad - g).norm() / g.norm()).item())
    assert lengths[:2] == [0, 0]
    assert lengths[2] == pytest.approx(0.7, rel=1e-4) and lengths[3] > 0
    before = balance.squares
    restored, clean = images(5)
    balance(restored, (restored - clean).abs().mean(), 0 * restored.sum())
    assert torch.equal(balance.squares, before)


@pytest.mark.parametrize("leaf", [torch.float32, torch.float16])
def test_the_ratio_holds_where_phi_runs_in_float16(leaf: torch.dtype) -> None:
    """D2SM's gradient within Phi is below float16's smallest number, 6e-8, before any loss scale."""
    weight = 1e-3  # as of larger queues and longer rows, which would take longer here
    loss = D2SMLoss(small_phi().float(), 64, 8)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(20, 3, 32, 32, generator=generator)
    restored = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).to(leaf)
    for step in range(0, 16, 4):
        loss(restored[step : step + 4].float(), clean[step : step + 4])
    loss.eval()
    found = []
    for dtype in (None, torch.float16):
        balance, x = GradientBalance(0.5), restored[16:].clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            other = weight * loss(x if dtype else x.float(), clean[16:])
            total = balance(x, (x - clean[16:]).abs().mean(), other)
        (2.0**16 * total).backward()
        assert x.grad is not None and x.grad.dtype == leaf
        found.append((balance.scale.item(), x.grad.float()))
    (wanted_scale, wanted), (scale, gradient_found) = found
    assert scale == pytest.approx(wanted_scale, rel=0.02)
    assert (gradient_found - wanted).norm() < 0.05 * wanted.norm()


def test_a_loss_in_float16_can_be_balanced() -> None:
    """As of two half-precision images, outside of autocast: the loss scale is a number that float16 holds."""
    restored, clean = (x.detach().half() for x in images(0))
    restored.requires_grad_()
    balance = GradientBalance(0.5)
    balance(restored, (restored - clean).abs().sum(), (restored - clean).square().mean()).backward()
    assert restored.grad is not None and restored.grad.isfinite().all() and restored.grad.any()
    assert balance.squares.isfinite().all() and (balance.squares > 0).all()


def test_without_gradient_and_in_eval_mode_the_means_stay() -> None:
    balance = GradientBalance(0.5)
    restored, clean = images(2)
    balance(restored, *pair(restored, clean, 0))
    before = copy.deepcopy(balance.state_dict())
    with torch.no_grad():
        reference, other = pair(restored, clean, 1)
        torch.testing.assert_close(balance(restored, reference, other), reference + balance.scale * other)
    balance.eval()(restored, *pair(restored, clean, 3)).backward()
    assert torch.equal(balance.state_dict()["squares"], before["squares"]) and restored.grad is not None
    resumed = GradientBalance(0.5)
    resumed.load_state_dict(before)
    assert torch.equal(resumed.scale, balance.scale)


def test_converting_the_module_leaves_the_means() -> None:
    plain, converted = GradientBalance(0.5), GradientBalance(0.5).half()
    for step in range(3):
        for balance in (plain, converted):
            restored, clean = images(step)
            balance(restored, *pair(restored, clean, step))
        assert torch.equal(converted.half().squares, plain.squares)


def test_the_means_follow_the_gradients_to_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's meta device stands for an accelerator: it mixes with the CPU as little."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for meta
    balance = GradientBalance(0.5)
    restored = torch.rand(2, 3, 4, 4, device="meta", requires_grad=True)
    balance(restored, restored.abs().mean(), restored.square().mean()).backward()
    assert balance.squares.is_meta and restored.grad is not None


@pytest.mark.parametrize("ratio, momentum", [(0.0, 0.9), (-1.0, 0.9), (float("nan"), 0.9), (1.0, 1.0), (1.0, -0.1)])
def test_arguments_out_of_range(ratio: float, momentum: float) -> None:
    with pytest.raises(ValueError, match=r"^ratio=.*momentum="):
        GradientBalance(ratio, momentum)


def train(rank: int, workers: int) -> dict[str, Any]:
    """A plain loop with D2SM, a different number of images on each rank, without any other correction for it.

    Under DistributedDataParallel a mean over a rank's images counts by their number.
    """
    network, loss, balance = small_network(), D2SMLoss(small_phi(), 32).double(), GradientBalance(0.7)
    model: nn.Module = DistributedDataParallel(network) if workers > 1 else network
    optimizer, scales = torch.optim.Adam(network.parameters(), lr=0.01), []
    for step in range(STEPS):
        batch, sizes = batch_of(step, uneven=True)
        clean = batch[slice_of(sizes, rank, workers)]
        restored = model(clean)
        l1 = (restored - clean).abs().mean() * len(clean) * workers / len(batch)
        total = balance(restored, l1, loss(restored, clean))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        scales.append(balance.scale.item())
    return {"scales": scales, "network": network.state_dict()}


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_train_as_one(workers: int, tmp_path: Path) -> None:
    """To 1e-7 in float64; the scale is the same on every rank, bit for bit."""
    alone, found = train(0, 1), on_ranks(train, workers, tmp_path)
    assert len(set(alone["scales"])) == STEPS
    for worker in found:
        assert worker["scales"] == found[0]["scales"] == pytest.approx(alone["scales"], rel=1e-7)
        for name, weight in worker["network"].items():
            torch.testing.assert_close(weight, alone["network"][name], rtol=1e-7, atol=1e-9)
