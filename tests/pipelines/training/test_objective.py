"""The weighted sum that training descends: which terms are in it, what it needs, and what it saves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from d2sm.models import CBDNet
from d2sm.objectives import NoiseAsymmetry, NoiseTotalVariation, SSIMLoss
from pipelines.config import Config, ConfigError
from pipelines.training.objective import Objective
from tests.helpers.objectives import images, write_heads

TINY = {"loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "loss.queue_size": 64}


def objective(**weights: Any) -> Objective:
    changes = {"loss.weight": 0, "model.name": "cbdnet", **{f"loss.{key}": value for key, value in weights.items()}}
    return Objective(Config().replace(TINY | changes).loss)


def batch() -> dict[str, torch.Tensor]:
    restored, clean = images(2, 64, 64)
    generator = torch.Generator().manual_seed(4)
    return {
        "restored": restored, "clean": clean, "sigma": torch.tensor([10.0, 40.0]),
        "estimate": 0.2 * torch.rand(restored.shape, generator=generator),
        "labels": torch.randint(0, 19, (2, 64, 64), generator=generator).byte(),
    }  # fmt: skip


def test_all_terms_combine(tmp_path: Path) -> None:
    weights = {
        "l1": 1, "weight": 2, "mse": 3, "ssim": 0.5, "perceptual": 0.1, "lpips": 0.2, "contextual": 0.3,
        "cross_entropy": 0.4, "noise_asymmetry": 5, "noise_tv": 6, "adversarial": 7,
    }  # fmt: skip
    term = objective(
        **weights, lpips_heads=str(write_heads(tmp_path / "alex.pth")), lpips_weights="random", lpips_trunk="alexnet",
        contextual_layers=["fire5"], segmenter="tests.helpers.segmenters:segmenter",
    )  # fmt: skip
    total, parts = term(**batch())
    names = ["d2sm" if name == "weight" else name for name in weights]
    assert set(parts) == {"loss", "loss.discriminator", *(f"loss.{name}" for name in names)}
    wanted = sum(weight * parts[f"loss.{name}"].item() for name, weight in zip(names, weights.values(), strict=True))
    assert parts["loss"].item() == pytest.approx(wanted, rel=1e-5)
    # The discriminator's own loss is descended beside what is logged as the loss.
    assert total.item() == pytest.approx(wanted + parts["loss.discriminator"].item(), rel=1e-5)
    assert {key.partition(".")[0] for key in term.state_dict()} == {"d2sm", "adversarial"}
    assert not any("features" in key for key in term.state_dict())
    term.load_state_dict(term.state_dict())


def test_what_is_off_is_not_there() -> None:
    term, given = objective(ssim=0.5), batch()
    assert dict(term.named_children()).keys() == {"l1", "ssim"} and not term.state_dict()
    assert term.d2sm is None and term.adversarial is None
    total, parts = term(**given)
    assert set(parts) == {"loss", "loss.l1", "loss.ssim"}
    l1 = (given["restored"] - given["clean"]).abs().mean()
    wanted = l1 + 0.5 * SSIMLoss()(given["restored"], given["clean"])
    torch.testing.assert_close(total, wanted)


def test_l1_is_logged_where_it_is_not_descended() -> None:
    given = batch()
    total, parts = objective(l1=0, mse=1)(restored=given["restored"], clean=given["clean"])
    torch.testing.assert_close(total, (given["restored"] - given["clean"]).square().mean())
    torch.testing.assert_close(parts["loss.l1"], (given["restored"] - given["clean"]).abs().mean())


def test_a_missing_input_is_named() -> None:
    given = batch()
    with pytest.raises(ValueError, match=r"loss\.noise_asymmetry: .*sigma"):
        objective(noise_asymmetry=1)(given["restored"], given["clean"], estimate=given["estimate"])


def test_terms_that_see_all_ranks_are_not_scaled_by_a_ranks_crops() -> None:
    """D2SM knows the samples of all ranks; a mean over this rank's crops counts by their number."""
    given = batch()
    images = given["restored"], given["clean"]
    total, losses = objective(weight=2, l1=3)(*images, rank_weight=1.25)
    torch.testing.assert_close(total, 2 * losses["loss.d2sm"] + 1.25 * 3 * losses["loss.l1"])
    torch.testing.assert_close(losses["loss"], 2 * losses["loss.d2sm"] + 3 * losses["loss.l1"])


def test_cbdnets_own_objective() -> None:
    given = batch()
    total, _ = objective(l1=0, mse=1, noise_asymmetry=0.5, noise_tv=0.05)(**given)
    wanted = (given["restored"] - given["clean"]).square().mean()
    images = given["restored"], given["clean"]
    wanted += 0.5 * NoiseAsymmetry()(*images, estimate=given["estimate"], sigma=given["sigma"])
    wanted += 0.05 * NoiseTotalVariation()(*images, estimate=given["estimate"])
    torch.testing.assert_close(total, wanted)


def test_the_estimate_alone_is_trained_and_every_weight_has_a_gradient() -> None:
    """Which DistributedDataParallel asks for; that of what restores is 0."""
    network = CBDNet()
    given = batch()
    restored, estimate = network.with_estimate(given["restored"])
    given |= {"restored": restored, "estimate": estimate}
    total, losses = objective(l1=0, noise_asymmetry=0.5, noise_tv=0.05)(**given)
    assert torch.equal(total, losses["loss"]) and total > 0
    total.backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    assert None not in gradients.values()
    trained = {name.partition(".")[0] for name, gradient in gradients.items() if gradient.any()}
    assert trained < {name.partition(".")[0] for name in gradients}


def test_perceptual_and_contextual_stand_at_phis_layer_unless_told() -> None:
    given = batch()
    images_only = {"restored": given["restored"], "clean": given["clean"]}
    for name in ("perceptual", "contextual"):
        default, same, other = (
            objective(**{name: 1.0, f"{name}_layers": layers})(**images_only)[1][f"loss.{name}"].item()
            for layers in ([], ["fire3"], ["conv1"])
        )
        assert default == same != other


@pytest.mark.parametrize(
    "weights, words",
    [
        ({"lpips": 1}, "loss.lpips_trunk=vgg16: .*no weights of vgg16 at .*vgg16-397923af.pth.*loss.lpips_weights"),
        ({"lpips": 1, "lpips_heads": "/none.pth"}, "/none.pth cannot be read"),
        ({"perceptual": 1, "perceptual_layers": ["conv5_4"]}, "squeezenet1_0 has no layer 'conv5_4'"),
        ({"cross_entropy": 1, "segmenter": "espnet-camvid"}, "segmenter espnet-camvid needs weights"),
    ],
)
def test_what_is_missing_is_one_line(weights: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        objective(**weights)
    assert "\n" not in str(error.value)


def test_a_gradient_ratio_scales_all_that_is_not_pixelwise() -> None:
    """Against separate backward passes of each group of terms. The noise estimate's terms and the discriminator keep
    their own gradients, and the terms that are scaled theirs relative to each other."""
    weights = {"l1": 1, "mse": 3, "weight": 2, "ssim": 0.5, "adversarial": 7, "noise_asymmetry": 5, "noise_tv": 6}
    groups = {
        "pixelwise": {"l1": 1.0, "mse": 3.0},
        "scaled": {"d2sm": 2.0, "ssim": 0.5, "adversarial": 7.0},
        "estimate": {"noise_asymmetry": 5.0, "noise_tv": 6.0},
    }
    torch.manual_seed(0)
    plain = objective(**weights)
    balanced = objective(**weights, gradient_ratio=0.7)
    balanced.load_state_dict(plain.state_dict(), strict=False)
    squares = torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        given = batch()
        given["clean"] = given["clean"] / (1 + step)

        def gradients(term: Objective) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
            leaves = {name: given[name].clone().requires_grad_() for name in ("restored", "estimate")}  # noqa: B023
            assert term.adversarial is not None
            term.zero_grad()
            total, parts = term(**{**given, **leaves})  # noqa: B023
            total.backward()
            leaves |= dict(term.adversarial.discriminator.named_parameters())
            return {key: torch.zeros(()) if x.grad is None else x.grad.clone() for key, x in leaves.items()}, parts

        wanted = {}
        for name, of_group in groups.items():
            alone = copy.deepcopy(plain)
            alone.weights = of_group
            wanted[name], _ = gradients(alone)
        new = [wanted[name]["restored"].double().square().sum() for name in ("pixelwise", "scaled")]
        squares = 0.9 * squares + 0.1 * torch.stack(new)
        scale = (0.7 * (squares[0] / squares[1]).sqrt()).float()

        (of_plain, parts), (found, balanced_parts) = gradients(plain), gradients(balanced)
        by_restored = wanted["pixelwise"]["restored"] + scale * wanted["scaled"]["restored"]
        torch.testing.assert_close(found.pop("restored"), by_restored, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(balanced_parts.pop("weight_scale").float(), scale, rtol=1e-4, atol=0)
        del of_plain["restored"]
        assert of_plain["estimate"].any()
        torch.testing.assert_close(found, of_plain, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(balanced_parts, parts, rtol=0, atol=0)
    assert balanced.state_dict().keys() - plain.state_dict().keys() == {"balance.squares"}


def test_without_gradients_there_is_a_value() -> None:
    given, term = batch(), objective(weight=2, gradient_ratio=0.7)
    with torch.no_grad():
        total, parts = term(given["restored"], given["clean"])
    torch.testing.assert_close(total, parts["loss"])
    assert parts["weight_scale"] == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"l1": 0, "ssim": 1}, r"loss\.gradient_ratio=2: is a ratio to loss\.l1 and loss\.mse; set one of them"),
        ({"mse": 1}, r"loss\.gradient_ratio=2: .*beside loss\.l1, loss\.mse; set loss\.weight"),
        ({"noise_tv": 1}, r"loss\.gradient_ratio=2: .*beside loss\.l1, loss\.noise_tv; set loss\.weight"),
        ({"weight": 1, "gradient_ratio": 0}, r"loss\.gradient_ratio=0: .*greater than 0"),
    ],
)
def test_a_ratio_of_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        objective(**{"gradient_ratio": 2, **changes})
    assert "\n" not in str(error.value)
