"""Numbers that are not finite end a training, with what to lower."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_FINITE = {  # number -> what it is, and what to lower when it is not finite
    "loss.l1": ("the loss", "train.lr or loss.weight"),
    "loss.discriminator": ("the discriminator's loss", "loss.adversarial_lr"),  # to blame while L1 is finite
    "loss": ("the loss", "train.lr or loss.weight"),
    "gradient_norm": ("the gradient", "train.lr or loss.weight"),
    "discriminator_gradient_norm": ("the discriminator's gradient", "loss.adversarial_lr"),
}


class TrainingError(ValueError):
    """Training cannot go on. One line."""


def check(numbers: Mapping[str, Tensor], where: str) -> None:
    """TrainingError, with the remedy, on what is not finite; the first to be named is what the others follow from."""
    for name, (what, lower) in _FINITE.items():
        if name in numbers and not torch.isfinite(numbers[name]):
            raise TrainingError(
                f"{where}: {what} is not finite; training stopped and the last checkpoint is kept. Lower {lower}, "
                "or set train.clip, under another train.name"
            )
