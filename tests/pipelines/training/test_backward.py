"""A step's gradient from parts of a worker's crops: that of all crops at once, whatever the objective is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.config import Config, ConfigError
from pipelines.networks.models import TrainingModule, build
from pipelines.training.backward import Gradient
from pipelines.training.objective import Objective
from tests.helpers.networks import stirred
from tests.helpers.training_steps import CROPS, OBJECTIVES, batch, config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions in float64 have no fast kernel, and many small ones on more threads than free cores take tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def descend(config: Config, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Two steps' gradients without a step between: the last parts of the loss, the gradients, the objective's state."""
    torch.manual_seed(0)
    network = stirred(build(config.model)).to(dtype)
    objective = Objective(config.loss).to(dtype).train()
    gradient = Gradient(TrainingModule(network, estimate=config.loss.judges_estimate), objective, config.train)
    sides = nn.ModuleDict({"network": network})
    if objective.adversarial is not None:
        sides["discriminator"] = objective.adversarial.discriminator
    for step in range(2):  # the second meets the first in the queues
        sides.zero_grad()
        parts = gradient(**batch(step, dtype))
    slopes = {name: weight.grad for name, weight in sides.named_parameters() if weight.requires_grad}
    assert all(slope is not None for slope in slopes.values())
    return parts, {name: slope for name, slope in slopes.items() if slope is not None}, objective.state_dict()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_give_the_whole_gradient(name: str, tmp_path: Path) -> None:
    """Losses, gradients and the state of queues and discriminator, to 1e-9 in float64; 2 and 5 parts of 5 crops."""
    whole = descend(config(name, tmp_path), torch.float64)
    for parts in (2, CROPS) if name != "all" else (2,):
        made = descend(config(name, tmp_path, **{"train.accumulate": parts}), torch.float64)
        for found, wanted in zip(made, whole, strict=True):
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9 * _scale(value), msg=key)


def _scale(value: Any) -> float:
    return float(value.abs().max()) if isinstance(value, Tensor) and value.numel() else 0.0


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 3e-2)])
def test_parts_in_other_precisions(precision: str, tolerance: float, tmp_path: Path) -> None:
    """Largest error by the largest entry of a weight's gradient. bf16: no weight is left without, each part's forward
    pass being made twice, without and with a graph."""
    whole = descend(config("d2sm", tmp_path, **{"train.precision": precision}), torch.float32)
    made = descend(config("d2sm", tmp_path, **{"train.precision": precision, "train.accumulate": 3}), torch.float32)
    for key, value in whole[1].items():
        torch.testing.assert_close(made[1][key], value, rtol=0, atol=tolerance * _scale(value), msg=key)


def test_phi_is_half_and_the_losses_are_not(tmp_path: Path) -> None:
    term = Gradient(nn.Identity(), objective := Objective(config("all", tmp_path).loss), config("all", tmp_path).train)
    assert term.parts == 1 and objective.d2sm is not None
    seen: dict[str, torch.dtype] = {}
    objective.d2sm.features.register_forward_hook(lambda *made: seen.__setitem__("phi", made[2].dtype))
    objective.d2sm.matching.register_forward_hook(lambda *made: seen.__setitem__("matching", made[2].dtype))
    given = batch(0, torch.float32)
    restored = given.pop("noisy").requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        _, parts = objective(restored=restored, estimate=0.1 * torch.ones_like(restored), **given)
    assert seen == {"phi": torch.bfloat16, "matching": torch.float32}
    assert {name: part.dtype for name, part in parts.items()} == dict.fromkeys(parts, torch.float32)


def test_more_parts_than_crops_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"train.accumulate=3: a worker has no more than 2 crops a step") as error:
        Config().replace({"train.accumulate": 3, "train.batch_size": 4, "train.num_workers": 2})
    assert "\n" not in str(error.value)
