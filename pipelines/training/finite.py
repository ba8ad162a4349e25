"""A loss or gradient that is not finite ends the training, with the setting to lower."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_CHECKED = {  # logged name -> what it is, and the setting to lower when it is not finite
    "loss.l1": ("the loss", "train.lr or loss.weight"),
    "loss.discriminator": ("the discriminator's loss", "loss.adversarial_lr"),  # the cause if L1 is still finite
    "loss": ("the loss", "train.lr or loss.weight"),
    "gradient_norm": ("the gradient", "train.lr or loss.weight"),
    "discriminator_gradient_norm": ("the discriminator's gradient", "loss.adversarial_lr"),
}


class TrainingError(ValueError):
    """Training cannot go on. One line."""


def check(numbers: Mapping[str, Tensor], where: str) -> None:
    """Check the losses and gradient norms, causes before consequences.

    Args:
        numbers: by logged name.
        where: the step or steps they belong to, for the message.

    Raises:
        TrainingError: one is NaN or infinite; names the setting to lower.
    """
    for name, (what, lower) in _CHECKED.items():
        if name in numbers and not torch.isfinite(numbers[name]):
            raise TrainingError(
                f"{where}: {what} is not finite; training stopped and the last checkpoint is kept. Lower {lower}, "
                "or set train.clip, under another train.name"
            )
