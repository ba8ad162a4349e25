"""The discriminator's own training: its optimizer, its part in checkpoints, and how its failure is reported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.config import Config
from pipelines.runs import checkpoint
from pipelines.training.discriminator import DiscriminatorOptimizer
from pipelines.training.finite import TrainingError
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.equality import equal
from tests.helpers.training_steps import CPU, share, small


def test_its_optimizer_clips_and_goes_on_at_the_configured_rate() -> None:
    config = Config().replace({"loss.adversarial": 1, "train.clip": 0.5})
    discriminator = nn.Linear(2, 1)
    optimizer = DiscriminatorOptimizer(discriminator, config)
    (100 * discriminator(torch.ones(1, 2)).sum()).backward()
    assert optimizer.step().item() == pytest.approx(100 * 3**0.5)
    assert all(weight.grad is None for weight in discriminator.parameters())
    first = optimizer.state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(first, torch.full((1, 2), 0.5 * 0.5 / 3**0.5))  # (1 - 0.5) of a gradient of norm 0.5
    faster = DiscriminatorOptimizer(discriminator, config.replace({"loss.adversarial_lr": 0.01}))
    faster.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in faster.optimizer.param_groups] == [0.01]
    assert equal(faster.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.fixture
def camvid(shared: Path) -> Path:
    return shared / "data" / "camvid"


def still(root: Path, **changes: Any) -> Config:
    """The recipe, with a network that stands still for as long as float32 can tell."""
    rest = {f"loss.{key}": value for key, value in changes.items()}
    return small("ffdnet_gan_cpu", root, root).replace({"train.lr": 1e-20, **rest})


def test_the_discriminator_learns(camvid: Path) -> None:
    """Photographs, the real Phi, the recipe's rate: from no idea (2) to mostly right, with the network held fixed."""
    config = still(camvid)
    state, row = TrainState(config, steps_per_epoch=10, device=CPU), share(config, camvid)
    before = copy.deepcopy(state.network.state_dict())
    losses = [train_step(state, row, step)["loss.discriminator"].item() for step in range(20)]
    assert losses[0] == pytest.approx(2, abs=0.3) and losses[-1] < 0.7 * losses[0]
    for name, weight in state.network.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-15)


def test_stopped_and_restored_equals_not_stopped(scenes_root: Path, tmp_path: Path) -> None:
    """Bit for bit: network, average, discriminator, both optimizers."""
    config = small("ffdnet_gan_cpu", scenes_root, scenes_root).replace({"train.lr": 1e-3})
    row = share(config, scenes_root)
    whole, other = (TrainState(config.replace({"train.seed": seed}), 10, device=CPU) for seed in (config.train.seed, 1))
    for step in range(3):
        train_step(whole, row, step)
    folder = tmp_path / checkpoint.name_of(3)
    checkpoint.write(
        folder,
        weights=whole.network.state_dict(),
        state=whole.state_dict(),
        config=config,
        meta={"step": 3, "epoch": 0},
    )
    assert not equal(other.state_dict()["objective"], whole.state_dict()["objective"])
    assert other.restore(folder) == 3
    for step in range(3, 6):
        assert equal(train_step(whole, row, step), train_step(other, row, step))
    assert equal(whole.state_dict(), other.state_dict())
    assert whole.ema is not None and not any("discriminator" in name for name in whole.ema.state_dict())


def test_a_discriminator_that_breaks_is_named(scenes_root: Path) -> None:
    config = still(scenes_root, adversarial_lr=1e30)
    state, row = TrainState(config, steps_per_epoch=10, device=CPU), share(config, scenes_root)
    with pytest.raises(
        TrainingError, match=r"step [123]: the discriminator's loss .*Lower loss.adversarial_lr"
    ) as error:
        for step in range(4):
            train_step(state, row, step)
    assert "\n" not in str(error.value)
