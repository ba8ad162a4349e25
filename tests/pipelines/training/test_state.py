"""The learning rate schedules, and a training state restored with another learning rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map_only

from pipelines.config import Config
from pipelines.runs import checkpoint
from pipelines.sections import Train
from pipelines.training.state import TrainState, lr_factor
from pipelines.training.step import train_step
from tests.helpers.equality import equal
from tests.helpers.training_steps import CPU, batch, config, rows_are_tensors

NEEDS_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def train(**changes: Any) -> Train:
    return Config().replace({f"train.{key}": value for key, value in changes.items()}).train


def test_the_learning_rate_of_the_paper() -> None:
    factors = [lr_factor(train(epochs=480), epoch * 10, 10) for epoch in (0, 79, 80, 159, 160, 240, 320, 400, 479)]
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125]


def test_the_other_schedules() -> None:
    constant = train(schedule="constant", warmup_steps=3)
    assert [lr_factor(constant, step, 5) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = train(schedule="cosine", epochs=2, warmup_steps=2)
    after = [lr_factor(cosine, step, 5) for step in range(2, 11)]
    wanted = [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    np.testing.assert_allclose(after, wanted, atol=1e-6)  # float32 cosine


def test_a_restored_state_takes_the_configured_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in population-based training; everything else is what was saved."""
    rows_are_tensors(monkeypatch)
    halving = {"train.schedule": "halve", "train.halve_at": [1], "train.ema": 0.9}
    donor = TrainState(config("d2sm", tmp_path, **halving, **{"train.lr": 1e-3}), steps_per_epoch=2, device=CPU)
    for step in range(3):
        row: Any = batch(step, donor.optimizer.param_groups[0]["params"][0].dtype)
        train_step(donor, row, step)
    folder = tmp_path / checkpoint.name_of(3)
    checkpoint.write(
        folder, weights=donor.weights(), state=donor.state_dict(), config=donor.config, meta={"step": 3, "epoch": 1}
    )
    state = TrainState(config("d2sm", tmp_path, **halving, **{"train.lr": 1e-2}), steps_per_epoch=2, device=CPU)
    assert state.restore(folder) == 3
    assert [group["lr"] for group in state.optimizer.param_groups] == [1e-2 * 0.5]
    ours, theirs = state.state_dict(), donor.state_dict()
    assert set(ours) == {"model", "average", "optimizer", "schedule", "objective", "adversary", "random"}
    for name in ("model", "average", "objective"):
        assert equal(ours[name], theirs[name])
    assert equal(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    assert equal(state.weights(), donor.weights()) and not equal(state.weights(), ours["model"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_with_a_gradient_ratio_is_the_uninterrupted_one(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, queues and the running lengths of gradients, bit for bit."""
    rows_are_tensors(monkeypatch)
    given = config("ratio", tmp_path, **{"train.precision": precision})
    whole, folder = TrainState(given, steps_per_epoch=10, device=CPU), tmp_path / checkpoint.name_of(3)
    for step in range(6):
        if step == 3:
            checkpoint.write(
                folder, weights=whole.weights(), state=whole.state_dict(), config=given, meta={"step": 3, "epoch": 0}
            )
        row: Any = batch(step, torch.float32)
        wanted = train_step(whole, row, step)
    resumed = TrainState(given, steps_per_epoch=10, device=CPU)
    resumed.restore(folder)
    for step in range(3, 6):
        row = batch(step, torch.float32)
        found = train_step(resumed, row, step)
    assert equal(found, wanted) and wanted["weight_scale"] not in (0, 1)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_a_resumed_run_may_have_strayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first step of a run is refused for restored images far from [0, 1]."""
    rows_are_tensors(monkeypatch)
    given, folder = config("all", tmp_path), tmp_path / checkpoint.name_of(0)
    before = TrainState(given, steps_per_epoch=10, device=CPU)
    checkpoint.write(
        folder, weights=before.weights(), state=before.state_dict(), config=given, meta={"step": 0, "epoch": 0}
    )
    after = TrainState(given, steps_per_epoch=10, device=CPU)
    after.restore(folder)
    for state, passed in ((before, False), (after, True)):
        checks = [part.check_range for part in state.objective.modules() if hasattr(part, "check_range")]
        assert len(checks) >= 4 and {check.passed for check in checks} == {passed}


@pytest.mark.parametrize(
    "first, second",
    [
        ("cpu", "cpu"),
        pytest.param("cpu", "cuda", marks=NEEDS_A_GPU),
        pytest.param("cuda", "cpu", marks=NEEDS_A_GPU),
    ],
)
def test_a_run_is_resumed_on_another_device(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, averages, moments and queues bit for bit; the next steps are those of the first device to rounding."""
    rows_are_tensors(monkeypatch)
    given = config("d2sm", tmp_path, **{"train.ema": 0.9})

    def stepped(state: TrainState, step: int) -> dict[str, torch.Tensor]:
        row: Any = {key: tensor.to(state.device) for key, tensor in batch(step, torch.float32).items()}
        return train_step(state, row, step)

    before, folder = TrainState(given, steps_per_epoch=10, device=torch.device(first)), tmp_path / checkpoint.name_of(3)
    for step in range(3):
        stepped(before, step)
    checkpoint.write(
        folder, weights=before.weights(), state=before.state_dict(), config=given, meta={"step": 3, "epoch": 0}
    )
    after = TrainState(given, steps_per_epoch=10, device=torch.device(second))
    assert after.restore(folder) == 3
    ours, theirs = (tree_map_only(torch.Tensor, torch.Tensor.cpu, each.state_dict()) for each in (after, before))
    for name in ("model", "average", "objective"):
        assert equal(ours[name], theirs[name]), name
    assert equal(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    for step in range(3, 6):
        wanted, found = stepped(before, step)["loss"], stepped(after, step)["loss"]
        assert found.device.type == second
        torch.testing.assert_close(found.cpu(), wanted.cpu(), rtol=1e-2, atol=0)


def test_dropout_is_drawn_from_seed_step_and_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a resumed run draws the same as one in one go, and no two ranks the same."""
    rows_are_tensors(monkeypatch)
    sizes = {"model.width": 96, "model.depth": 12}  # the defaults: they are for ffdnet only
    given = config("l1", tmp_path, **sizes, **{"model.name": "tests.foreign.tiny_network:dropout"})

    def loss(step: int, rank: int, seed: int = 0) -> float:
        state = TrainState(given.replace({"train.seed": seed}), steps_per_epoch=10, device=CPU)
        state.network.load_state_dict(weights)
        torch.manual_seed(9)  # whatever was drawn before
        return float(train_step(state, row, step, rank=rank)["loss"])

    row: Any = batch(0, torch.float32)
    weights = TrainState(given, steps_per_epoch=10, device=CPU).network.state_dict()
    assert loss(3, 1) == loss(3, 1)
    assert len({loss(3, 1), loss(3, 0), loss(4, 1), loss(3, 1, seed=1)}) == 4
