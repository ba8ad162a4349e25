"""A step in micro-batches has the gradient of the whole batch, whatever the objective is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2sm.models import WrappedNetwork
from pipelines.config import Config, ConfigError
from pipelines.networks.models import TrainingModule
from pipelines.training.backward import backward_through_network, forward, forward_without_graph, split
from pipelines.training.objective import Objective
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.foreign.tiny_network import dropout
from tests.helpers.networks import stirred
from tests.helpers.training_steps import CPU, CROPS, OBJECTIVES, batch, config, rows_are_tensors


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Convolutions in float64 have no fast kernel, and many small ones on more threads than free cores take tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def tensor_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_are_tensors(monkeypatch)


def two_steps(config: Config, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The second step's losses, the gradients, and the objective's state; the weights stay as they are.

    The discriminator's gradients are cleared in a step, so Adam's mean of them stands for them.
    """
    still = config.replace({"train.lr": 1e-30, "loss.adversarial_lr": 1e-30})
    state = TrainState(still, steps_per_epoch=10, device=CPU)
    torch.manual_seed(0)
    stirred(state.network).to(dtype)
    state.objective.to(dtype)
    for step in range(2):  # in the second step, the queues hold samples of the first
        losses = train_step(state, batch(step, dtype), step)
    gradients = {name: weight.grad for name, weight in state.network.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    if state.discriminator_optimizer is not None:
        moments = state.discriminator_optimizer.state_dict()["state"]
        gradients |= {f"discriminator.{number}": moment["exp_avg"] for number, moment in moments.items()}
    return losses, gradients, state.objective.state_dict()  # type: ignore[return-value]


def scale(value: Any) -> float:
    return float(value.abs().max()) if isinstance(value, Tensor) and value.numel() else 0.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    """Losses, gradients and the state of queues and discriminator, to 1e-9 in float64; 2 and 5 micro-batches."""
    whole = two_steps(config(name, tmp_path), torch.float64)
    for count in (2, CROPS) if name != "all" else (2,):
        accumulated = two_steps(config(name, tmp_path, **{"train.accumulate": count}), torch.float64)
        for found, wanted in zip(accumulated, whole, strict=True):
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9 * scale(value), msg=key)
                else:  # where the queues stand
                    assert found[key] == value, key


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 3e-2)])
def test_micro_batches_in_other_precisions(precision: str, tolerance: float, tmp_path: Path) -> None:
    """Largest error relative to the largest entry of a weight's gradient. In bf16 every weight has a gradient, although
    each micro-batch passes the network twice, first without a graph."""
    _, whole, _ = two_steps(config("d2sm", tmp_path, **{"train.precision": precision}), torch.float32)
    changes = {"train.precision": precision, "train.accumulate": 3}
    _, accumulated, _ = two_steps(config("d2sm", tmp_path, **changes), torch.float32)
    for key, value in whole.items():
        torch.testing.assert_close(accumulated[key], value, rtol=0, atol=tolerance * scale(value), msg=key)


def test_dropout_has_the_same_masks_in_both_passes() -> None:
    """The gradient is that of the loss which was computed; the random numbers afterwards are those of one pass."""
    train = Config().train
    model = TrainingModule(WrappedNetwork(dropout()), estimate=False).train()
    inputs = batch(0, torch.float32)
    micro_batches = split(inputs["noisy"], inputs["sigma"], 2)

    def step(micro_batched: bool) -> tuple[list[Tensor], Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        if micro_batched:
            (restored, estimate), states = forward_without_graph(model, micro_batches, train)
            (restored - inputs["clean"]).square().mean().backward()
            backward_through_network(model, micro_batches, (restored, estimate), states, train)
        else:
            restored = torch.cat([forward(model, *each, train)[0] for each in micro_batches])
            (restored - inputs["clean"]).square().mean().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None], torch.rand(3)

    (found, after), (wanted, expected) = step(True), step(False)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(after, expected)


def test_phi_is_in_bf16_and_the_losses_are_not(tmp_path: Path) -> None:
    objective = Objective(config("all", tmp_path).loss)
    assert objective.d2sm is not None
    seen: dict[str, torch.dtype] = {}
    objective.d2sm.features.register_forward_hook(lambda *made: seen.__setitem__("phi", made[2].dtype))
    objective.d2sm.matching.register_forward_hook(lambda *made: seen.__setitem__("matching", made[2].dtype))
    inputs = batch(0, torch.float32)
    restored = inputs.pop("noisy").requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = objective(restored, estimate=0.1 * torch.ones_like(restored), **inputs)
    assert seen == {"phi": torch.bfloat16, "matching": torch.float32}
    assert {name: loss.dtype for name, loss in losses.items()} == dict.fromkeys(losses, torch.float32)


@pytest.mark.parametrize("crops, count, sizes", [(5, 1, [5]), (5, 2, [3, 2]), (5, 3, [2, 2, 1]), (2, 3, [1, 1])])
def test_a_batch_is_split_evenly(crops: int, count: int, sizes: list[int]) -> None:
    micro_batches = split(torch.zeros(crops, 3, 4, 4), torch.zeros(crops), count)
    assert [len(noisy) for noisy, _ in micro_batches] == [len(sigma) for _, sigma in micro_batches] == sizes


def test_more_micro_batches_than_crops_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"train.accumulate=3: .* 2 crops") as error:
        Config().replace({"train.accumulate": 3, "train.batch_size": 4, "train.num_workers": 2})
    assert "\n" not in str(error.value)
