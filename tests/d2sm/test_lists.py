"""Every objective, backbone and degradation of the lists keeps its contract; the lists themselves load no torch."""

from __future__ import annotations

import copy
import doctest
import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2sm import D2SMLoss, models, objectives
from d2sm.degradations import DEGRADATIONS
from d2sm.models import BACKBONES, Denoiser
from d2sm.objectives import LPIPS, TERMS, Contextual, CrossEntropy, Perceptual
from tests.helpers.networks import stirred
from tests.helpers.objectives import images, write_heads

RANDOM = ("noise", "noise_clip", "poisson", "motion", "haze")  # degradations in which something is drawn
PHI = ("squeezenet1_0.fire3", "squeezenet1_0", ("fire3",))


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], nn.Module]:
    """Builds any objective of the list: as its entry says, but for those that have options."""
    with_options: dict[str, Callable[[], nn.Module]] = {
        "d2sm": lambda: D2SMLoss(PHI[0], 12, weights="random"),
        "perceptual": lambda: Perceptual(PHI[1], PHI[2], weights="random"),
        "contextual": lambda: Contextual(PHI[1], PHI[2], weights="random"),
        "lpips": lambda: LPIPS(write_heads(tmp_path / "alex.pth"), "alexnet", weights="random"),
        "cross_entropy": lambda: CrossEntropy(nn.Conv2d(3, 6, 3, padding=1)),
    }

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        if name in with_options:
            return with_options[name]()
        term = TERMS[name]
        return term.load()(PHI[0], weights="random") if term.uses_phi else term.load()()

    return build


def inputs(name: str) -> dict[str, Tensor]:
    """What an objective needs beside four pairs of images of 40 x 48."""
    generator = torch.Generator().manual_seed(1)
    every = {
        "labels": torch.randint(0, 6, (4, 40, 48), generator=generator),
        "sigma": torch.tensor([10.0, 20.0, 30.0, 40.0]),
        "estimate": 0.2 * torch.rand(4, 3, 40, 48, generator=generator),
    }
    return {key: every[key] for key in TERMS[name].inputs}


def values(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def state(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy({**module.state_dict(), **dict(module.named_buffers())})


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key] for key, value in a.items()
    )


@pytest.mark.parametrize("name", TERMS)
def test_objectives_are_called_alike(name: str, build: Callable[[str], nn.Module]) -> None:
    restored, clean = images(4)
    first, second = build(name), build(name)
    by_position = values(first(restored, clean, **inputs(name)))
    by_keyword = values(second(clean=clean, restored=restored, **inputs(name)))
    assert len(by_position) == 1 + len(TERMS[name].extra_losses)
    for value, other in zip(by_position, by_keyword, strict=True):
        assert torch.equal(value, other)
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    parameters = list(inspect.signature(first.forward).parameters)
    assert parameters == ["restored", "clean", *TERMS[name].inputs, *TERMS[name].inputs_by_key.values()]


@pytest.mark.parametrize("name", TERMS)
def test_gradient_reaches_what_the_objective_compares(name: str, build: Callable[[str], nn.Module]) -> None:
    restored, clean = (image.requires_grad_() for image in images(4))
    given = inputs(name)
    leaf = given["estimate"].requires_grad_() if "estimate" in given else restored
    values(build(name)(restored, clean, **given))[0].backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert leaf.grad.abs().flatten(1).sum(1).min() > 0  # of every image
    assert clean.grad is None or not TERMS[name].uses_phi


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if not (term.inputs or term.extra_losses)])
def test_restoring_perfectly_is_best(name: str, build: Callable[[str], nn.Module]) -> None:
    """Descent on the images leads towards the clean ones; at them the value is 0, that of `contextual` nearly."""
    restored, clean = images(4)
    loss = build(name).eval()
    at_equality, apart = (loss(image, clean).item() for image in (clean.clone(), restored))
    assert -1e-6 <= at_equality < (0.05 * apart if name == "contextual" else 1e-6) < apart
    assert TERMS[name].lower_is_better


@pytest.mark.parametrize("name", TERMS)
def test_evaluation_mode_changes_no_state(name: str, build: Callable[[str], nn.Module]) -> None:
    loss, given = build(name), inputs(name)
    loss(*images(4), **given)
    before = state(loss)
    quiet = [values(loss.eval()(*images(4, seed=5), **given))[0] for _ in range(2)]
    assert torch.equal(*quiet)
    assert same(state(loss), before)


@pytest.mark.parametrize("name", TERMS)
def test_objectives_name_the_argument_of_another_shape(name: str, build: Callable[[str], nn.Module]) -> None:
    loss, (restored, clean), given = build(name), images(4), inputs(name)
    if not TERMS[name].uses_estimate:  # those do not look at the images
        with pytest.raises(ValueError, match=r"clean: shape \(3, 3, 40, 48\)"):
            loss(restored, clean[:3], **given)
        with pytest.raises(ValueError, match=r"restored: shape \(3, 40, 48\)"):
            loss(restored[0], clean, **given)
    for key in set(given) - {"sigma"}:
        with pytest.raises(ValueError, match=f"{key}|sigma"):
            loss(restored, clean, **{**given, key: given[key][0]})


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_keep_the_contract(name: str) -> None:
    entry = BACKBONES[name]
    torch.manual_seed(0)
    network = stirred(entry.load()())
    assert isinstance(network, Denoiser) and type(network) is getattr(models, type(network).__name__)
    assert all(isinstance(value, int) and value > 0 for value in (network.stride, network.receptive_field))
    assert network.bytes_per_pixel > 0
    assert set(entry.options) <= set(inspect.signature(entry.load()).parameters)
    assert entry.blind == network.blind
    assert entry.estimates_noise == hasattr(network, "with_estimate")
    for size in ((1, 1), (33, 17), (16, 16)):
        noisy = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
        restored = network(noisy, 25.0)
        assert restored.shape == noisy.shape
        for sigma in (25, torch.tensor(25.0), torch.full((2,), 25.0)):
            assert torch.equal(network(noisy, sigma), restored)
        if network.blind:
            assert torch.equal(network(noisy), restored) and torch.equal(network(noisy, 60.0), restored)
        else:
            assert not torch.equal(network(noisy, 60.0), restored)
            with pytest.raises(ValueError, match="sigma"):
                network(noisy)
            with pytest.raises(ValueError, match=r"sigma.*\(3,\)"):
                network(noisy, torch.ones(3))
    with pytest.raises(ValueError, match=r"noisy.*\(3, 16, 16\)"):
        network(noisy[0], 25.0)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_depend_on_an_images_seed_alone(name: str) -> None:
    entry, clean = DEGRADATIONS[name], images(4)[1]
    degrade, level = entry.load(), torch.tensor([2.0, 4.0, 6.0, 8.0])
    assert entry.low <= 2 and entry.high >= 8 and entry.unit and entry.summary
    before = clean.clone()
    degraded = degrade(clean, level=level, seeds=[4, 3, 2, 1])
    assert degraded.shape == clean.shape and degraded.dtype == clean.dtype and degraded.isfinite().all()
    assert not torch.equal(degraded, clean) and torch.equal(clean, before)
    assert torch.equal(degrade(clean, level=level, seeds=[4, 3, 2, 1]), degraded)
    assert torch.equal(degrade(clean[2:], level=level[2:], seeds=[2, 1]), degraded[2:])
    others = degrade(clean, level=level, seeds=[5, 3, 2, 1])
    assert torch.equal(others[1:], degraded[1:])
    assert name not in RANDOM or not torch.equal(others[0], degraded[0])


def test_the_lists_load_no_torch() -> None:
    code = "import sys, d2sm.models, d2sm.objectives, d2sm.degradations; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_names_are_imported_from_the_packages() -> None:
    for package in (objectives, models):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="Nothing"):
            package.Nothing  # noqa: B018


FILES = sorted({term.target.partition(":")[0] for term in TERMS.values()} | {"d2sm.matching", "d2sm.models.base"})


@pytest.mark.parametrize("module", FILES)
def test_docstring_examples_run(module: str) -> None:
    failed, attempted = doctest.testmod(import_module(module))
    assert failed == 0 and attempted >= 3
