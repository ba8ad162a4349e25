"""The adversarial losses against their definition, and who gets which gradient."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from d2sm.features import at_layers
from d2sm.layers import Layers
from d2sm.objectives import Adversarial
from d2sm.objectives.adversarial import discriminator
from tests.helpers.equality import equal
from tests.helpers.objectives import images


def phi() -> nn.Module:
    torch.manual_seed(8)
    return nn.Conv2d(3, 5, 4, stride=4)


def adversarial() -> Adversarial:
    """A narrow one, with its spectral norms found to the last digit."""
    loss = Adversarial(phi())
    loss.discriminator = discriminator(5, width=6)
    for layer in loss.discriminator[::2]:
        for _ in range(200):
            _ = layer.weight  # every look is a step of the power iteration
    return loss


def convolved(x: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A convolution with its weight over its largest singular value, in loops, float64: (C, h, w) -> (O, h, w)."""
    original = layer.parametrizations.weight.original.detach().double().numpy()
    weight = original / np.linalg.svd(original.reshape(len(original), -1), compute_uv=False)[0]
    border = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border)))
    out = np.empty((len(weight), *x.shape[1:]))
    for i, j in np.ndindex(*x.shape[1:]):
        window = padded[:, i : i + weight.shape[2], j : j + weight.shape[3]]
        out[:, i, j] = np.tensordot(weight, window, 3) + layer.bias.detach().double().numpy()
    return out


def logits(loss: Adversarial, pictures: Tensor) -> np.ndarray:
    """Phi, mean square 1, three layers with slope 0.2 below zero: (B, h, w), image by image."""
    with torch.no_grad():
        maps = loss.features(pictures).double().numpy()
    found = []
    for x in maps:
        x = x / math.sqrt(np.square(x).mean())
        for number, layer in enumerate(loss.discriminator[::2]):
            x = convolved(x if number == 0 else np.where(x > 0, x, 0.2 * x), layer)
        found.append(x[0])
    return np.array(found)


def test_both_losses_are_their_definition() -> None:
    """In numpy with singular values by SVD; 1e-5. The bias puts logits on both sides of the margins."""
    loss = adversarial().eval()
    restored, clean = images(3, 24, 28)
    with torch.no_grad():
        loss.discriminator[-1].bias.fill_(1 - logits(loss, clean).mean())
    false, true = logits(loss, restored), logits(loss, clean)
    assert (true > 1).any() and (true < 1).any()
    found = loss(restored, clean)
    assert found.network.item() == pytest.approx(-false.mean(), rel=1e-5)
    wanted = np.maximum(0, 1 - true).mean() + np.maximum(0, 1 + false).mean()
    assert found.discriminator.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("slope, bias, network, judge", [(1, -1.5, 0.5, 2.5 - 3**0.5 + 0.5), (10, -14, 4, 0)])
def test_known_answers(slope: float, bias: float, network: float, judge: float) -> None:
    """A red image among grey ones, judged by its red: (1, 1, 1) and (sqrt 3, 0, 0), within and past the margins."""
    loss = Adversarial(nn.AvgPool2d(4))
    layer = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([slope, 0, 0]).view(1, 3, 1, 1))
        layer.bias.fill_(bias)
    loss.discriminator = nn.Sequential(layer)
    grey, red = torch.full((2, 3, 8, 8), 0.3), torch.zeros(2, 3, 8, 8)
    red[:, 0] = 0.7
    found = loss(restored=grey, clean=red)
    assert found.network.item() == pytest.approx(network, rel=1e-5)
    assert found.discriminator.item() == pytest.approx(judge, rel=1e-5, abs=1e-6)


def test_the_scale_of_phi_plays_no_part() -> None:
    loss, (restored, clean) = adversarial().eval(), images()
    before = torch.stack(loss(restored, clean))
    loss.features.net.weight.mul_(100)
    loss.features.net.bias.mul_(100)
    torch.testing.assert_close(torch.stack(loss(restored, clean)), before)


def test_who_gets_which_gradient() -> None:
    loss, (restored, clean) = Adversarial(phi()).train(), images()
    restored.requires_grad_(), clean.requires_grad_()
    with torch.no_grad():
        loss.discriminator[-1].bias.fill_(1)  # within both margins, those of a new one's last bias cancel
    losses = loss(restored, clean)
    losses.network.backward(retain_graph=True)
    assert restored.grad is not None and (restored.grad != 0).float().mean() > 0.9
    assert all(weight.grad is None for weight in loss.parameters())
    first = restored.grad.clone()
    losses.discriminator.backward()
    assert torch.equal(restored.grad, first) and clean.grad is None
    assert all(weight.grad is not None and weight.grad.any() for weight in loss.discriminator.parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in loss.features.parameters())


def test_one_backward_pass_serves_both() -> None:
    """The gradients of the weighted sum are those of each by itself, bit for bit."""
    loss, (restored, clean) = adversarial().eval(), images()
    restored.requires_grad_()
    losses = loss(restored, clean)
    weights = list(loss.discriminator.parameters())
    (alone,) = torch.autograd.grad(0.5 * losses.network, restored, retain_graph=True)
    judged = torch.autograd.grad(losses.discriminator, weights, retain_graph=True)
    together = torch.autograd.grad(0.5 * losses.network + losses.discriminator, [restored, *weights])
    assert equal(list(together), [alone, *judged])


def test_half_precision_ends_at_phi() -> None:
    loss, (restored, clean) = adversarial().eval(), images()
    full = loss(restored, clean)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(restored, clean)
    assert {value.dtype for value in half} == {torch.float32}
    torch.testing.assert_close(torch.stack(half), torch.stack(full), rtol=0.05, atol=0.02)


def test_the_state_is_the_discriminators() -> None:
    loss = Adversarial("squeezenet1_0.fire3", weights="random").train()
    assert not any(part.training for part in loss.features.modules())
    state = loss.state_dict()
    assert state and all(key.startswith("discriminator.") for key in state)
    other = Adversarial("squeezenet1_0.fire3", weights="random")
    other.load_state_dict(copy.deepcopy(state))  # strict
    assert equal(tuple(loss.eval()(*images())), tuple(other.eval()(*images())))
    assert all(parametrize.is_parametrized(layer, "weight") for layer in loss.discriminator[::2])


def test_several_layers_have_a_discriminator_each() -> None:
    """Both losses are the means of those of the layers."""
    names = ["squeezenet1_0.fire3", "squeezenet1_0.fire5"]
    both = Adversarial(Layers([at_layers("squeezenet1_0", ["fire3", "fire5"], weights="random")], names)).eval()
    single = [Adversarial(name, weights="random").eval() for name in names]
    for ours, alone in zip(both.discriminator.children(), single, strict=True):
        alone.discriminator.load_state_dict(ours.state_dict())
    pair = images()
    wanted = torch.stack([torch.stack(alone(*pair)) for alone in single]).mean(0)
    torch.testing.assert_close(torch.stack(both(*pair)), wanted, rtol=1e-5, atol=1e-6)
    assert all(key.startswith(("discriminator.0.", "discriminator.1.")) for key in both.state_dict())
