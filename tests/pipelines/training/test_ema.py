"""EMA against torch's AveragedModel, bit for bit: same weights, same saved state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipelines.training.ema import EMA
from tests.helpers.equality import equal


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """As earlier commits averaged weights, and as older runs saved them."""

    def update(average: Any, current: Any, count: Tensor) -> None:
        steps = int(count)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return AveragedModel(network, multi_avg_fn=update)


def test_weights_and_state_are_those_of_averaged_model() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ours, theirs = EMA(network, 0.5), averaged(network, 0.5)
    for step in range(8):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
            network(torch.randn(2, 3, 8, 8) + step)  # changes the buffers
        ours.update(network)
        theirs.update_parameters(network)
        assert equal(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert ours.n_averaged.item() == 8


def test_an_older_state_is_restored() -> None:
    network = nn.Linear(3, 3)
    theirs = averaged(network, 0.9)
    for _ in range(3):
        theirs.update_parameters(network)
    ours = EMA(nn.Linear(3, 3), 0.9)
    ours.load_state_dict(theirs.state_dict())
    assert equal(dict(ours.state_dict()), dict(theirs.state_dict()))
