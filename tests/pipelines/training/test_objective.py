"""The weighted sum that training descends: which terms are in it, what it needs, and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2sm.objectives import NoiseAsymmetry, NoiseTotalVariation, SSIMLoss
from pipelines.config import Config
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
        ({"lpips": 1}, "features: no weights of vgg16 at .*vgg16-397923af.pth"),
        ({"lpips": 1, "lpips_heads": "/none.pth"}, "/none.pth cannot be read"),
        ({"perceptual": 1, "perceptual_layers": ["conv5_4"]}, "squeezenet1_0 has no layer 'conv5_4'"),
        ({"cross_entropy": 1, "segmenter": "espnet-camvid"}, "segmenter espnet-camvid needs weights"),
    ],
)
def test_what_is_missing_is_one_line(weights: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        objective(**weights)
    assert "\n" not in str(error.value)
