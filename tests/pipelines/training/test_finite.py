"""A loss that is not finite: the message names the term that is the cause, and settings that help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config import Config
from pipelines.training.finite import TrainingError, check
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.training_steps import CPU, config, row


def message(bad: list[str], **changes: Any) -> str:
    """Of a step in which some of the logged numbers are NaN."""
    loss = Config().replace({f"loss.{key}": value for key, value in changes.items()}).loss
    logged = ["loss", *(f"loss.{name}" for name in {"l1": 0, **loss.terms}), "gradient_norm"]
    numbers = {name: torch.tensor(float("nan") if name in bad else 1.0) for name in logged}
    with pytest.raises(TrainingError) as error:
        check(numbers, "step 3", loss)
    assert "\n" not in str(error.value)
    return str(error.value)


EVERYTHING = ["loss", "loss.l1", "loss.d2sm", "loss.ssim", "gradient_norm"]


@pytest.mark.parametrize(
    "changes, remedy",
    [
        ({}, "train.lr or loss.weight,"),
        ({"weight": 0}, "train.lr,"),
        ({"weight": 0, "mse": 1}, "train.lr,"),
        ({"weight": 0, "ssim": 1}, "train.lr or loss.ssim,"),
        ({"l1": 0}, "train.lr,"),
        ({"ssim": 1}, "train.lr or loss.weight or loss.ssim,"),
        ({"gradient_ratio": 2}, "train.lr or loss.gradient_ratio,"),
        ({"gradient_ratio": 2, "ssim": 1}, "train.lr or loss.gradient_ratio,"),
    ],
    ids=str,
)
def test_the_settings_to_lower_are_those_that_are_on(changes: dict[str, Any], remedy: str) -> None:
    assert f"the loss is not finite; training stopped and the last checkpoint is kept. Lower {remedy}" in message(
        EVERYTHING, **changes
    )
    assert f"the gradient is not finite; training stopped and the last checkpoint is kept. Lower {remedy}" in message(
        ["gradient_norm"], **changes
    )


@pytest.mark.parametrize(
    "bad, changes, found",
    [
        ("d2sm ssim", {"ssim": 1, "mse": 1}, r"\(loss.d2sm, loss.ssim\).*Lower train.lr or loss.weight or loss.ssim,"),
        ("d2sm", {"ssim": 1}, r"\(loss.d2sm\).*Lower train.lr or loss.weight,"),
        ("ssim", {"ssim": 1}, r"\(loss.ssim\).*Lower train.lr or loss.ssim,"),
        ("ssim", {"ssim": 1, "gradient_ratio": 2}, r"\(loss.ssim\).*Lower train.lr or loss.gradient_ratio,"),
    ],
    ids=str,
)
def test_the_terms_that_are_not_finite_are_named(bad: str, changes: dict[str, Any], found: str) -> None:
    text = message(["loss", *(f"loss.{name}" for name in bad.split()), "gradient_norm"], **changes)
    assert re.search(found, text), text


def test_a_network_that_gives_nan_in_the_first_step(tmp_path: Path) -> None:
    """No term of the objective takes it for images of a wrong range."""
    state = TrainState(config("all", tmp_path), 10, device=CPU)
    with torch.no_grad():
        for weight in state.network.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="^step 0: the loss is not finite.* Lower train.lr"):
        train_step(state, row(0), 0)
