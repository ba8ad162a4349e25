"""Every backbone of the list can be configured, built and trained."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from d2sm.models import BACKBONES
from pipelines.config import Config, ConfigError
from pipelines.networks.models import TrainingModule, build
from pipelines.sections import Model

OPTIONS = set(Model.model_fields) - {"name", "options", "weights"}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_built_by_name(name: str) -> None:
    network = build(Config().replace({"model.name": name}).model)
    assert type(network) is BACKBONES[name].load()
    noisy = torch.rand(2, 3, 16, 24)
    module = TrainingModule(network, estimate=BACKBONES[name].estimates_noise)
    restored, estimate = module(noisy, torch.tensor([10.0, 40.0]))
    assert restored.shape == noisy.shape and (estimate is not None) == BACKBONES[name].estimates_noise
    (restored - noisy).square().mean().backward()
    assert any(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_the_options_of_its_entry_and_no_others(name: str) -> None:
    assert set(BACKBONES[name].options) <= OPTIONS
    for option in OPTIONS:
        changes = {"model.name": name, f"model.{option}": getattr(Model(), option) + 1}
        if option in BACKBONES[name].options:
            build(Config().replace(changes).model)
        else:
            with pytest.raises(ConfigError, match=f"model.{option}=.*model.name={name}"):
                Config().replace(changes)


@pytest.mark.parametrize("name", BACKBONES)
def test_objectives_on_the_estimate_ask_for_a_backbone_that_gives_one(name: str) -> None:
    changes = {"model.name": name, "loss.noise_tv": 0.05}
    if BACKBONES[name].estimates_noise:
        Config().replace(changes)
    else:
        with pytest.raises(ConfigError, match=f"loss.noise_tv=0.05.*model.name={name}"):
            Config().replace(changes)


def test_the_configuration_names_the_backbones_and_loads_no_torch() -> None:
    with pytest.raises(ConfigError, match="model.name=.*ffdnet.*cbdnet.*sadnet"):
        Config().replace({"model.name": "unet"})
    code = "import sys, pipelines.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
