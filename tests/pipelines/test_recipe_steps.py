"""Every reduced row of the paper's tables takes real training steps: the worker's own, on crops of the plan."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pipelines.recipes import recipes
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.objectives import write_heads
from tests.helpers.training_steps import CPU, share, small

ROWS = [name for name in recipes() if name.endswith("_cpu")]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("lpips") / "alex.pth")


@pytest.mark.parametrize("name", ROWS)
def test_a_reduced_row_trains(name: str, scenes_root: Path, heads: Path) -> None:
    config = small(name, scenes_root, heads)
    row = share(config, scenes_root)
    assert ("label" in row) == ("cross_entropy" in name)
    state = TrainState(config, steps_per_epoch=10, device=CPU)
    before = [parameter.detach().clone() for parameter in state.network.parameters()]
    # A fresh FFDNet repeats its input, and at first gets worse.
    parts = [train_step(state, row, step) for step in range(12 if config.model.name == "ffdnet" else 4)]
    names = {"loss", "gradient_norm", "loss.l1"} | {f"loss.{term}" for term in config.loss.terms}
    if "adversarial" in config.loss.terms:
        names |= {"loss.discriminator", "discriminator_gradient_norm"}
    assert set(parts[0]) == names
    assert all(math.isfinite(value) for step in parts for value in step.values())
    moved = [not torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True)]
    assert all(moved)
    # D2SM's queues, and a discriminator that learns, change what is measured from step to step.
    if config.loss.terms.keys().isdisjoint(("d2sm", "adversarial")):
        assert parts[-1]["loss"] < parts[0]["loss"]
    frozen = ("perceptual", "lpips", "contextual", "cross_entropy")
    assert not any(key.startswith(frozen) for key in state.state_dict()["objective"])
