"""A loss or gradient that is not finite ends the training, with the settings to lower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from d2sm.objectives import TERMS
from pipelines.sections import Loss

_CHECKED = {  # logged name -> what it is
    "loss.l1": "the loss",
    "loss.discriminator": "the discriminator's loss",  # the cause if L1 is still finite
    "loss": "the loss",
    "gradient_norm": "the gradient",
    "discriminator_gradient_norm": "the discriminator's gradient",
}


class TrainingError(ValueError):
    """Training cannot go on. One line."""


def check(numbers: Mapping[str, Tensor], where: str, loss: Loss) -> None:
    """Check the losses and gradient norms, causes before consequences.

    Args:
        numbers: by logged name.
        where: the step or steps they belong to, for the message.
        loss: the configuration of the terms, for the message.

    Raises:
        TrainingError: one is NaN or infinite; names the terms that are the cause, and the settings to lower.
    """
    for name, what in _CHECKED.items():
        if name not in numbers or torch.isfinite(numbers[name]):
            continue
        causes: list[str] = []
        if name == "loss":  # L1 is finite, and so are the restored images: the cause is in other terms
            logged = [term for term in loss.terms if f"loss.{term}" in numbers]
            causes = [term for term in logged if not torch.isfinite(numbers[f"loss.{term}"])]
        terms = f" ({', '.join(f'loss.{term}' for term in causes)})" if causes else ""
        lower = ["loss.adversarial_lr"] if "discriminator" in name else ["train.lr", *_weights(loss, causes)]
        raise TrainingError(
            f"{where}: {what} is not finite{terms}; training stopped and the last checkpoint is kept. Lower "
            f"{' or '.join(lower)}, or set train.clip, under another train.name"
        )


def _weights(loss: Loss, causes: Sequence[str]) -> list[str]:
    """The keys that weigh these terms, or all if there are none, against those of the pixels.

    None where a single term is on: Adam's steps do not depend on its weight.
    """
    terms = [name for name in loss.terms if not TERMS[name].pixelwise]
    if len(loss.terms) == 1:
        return []
    keys = []
    for name in [name for name in causes if name in terms] or terms:
        balanced = loss.gradient_ratio is not None and not TERMS[name].uses_estimate
        keys.append("loss.gradient_ratio" if balanced else f"loss.{TERMS[name].weight_key}")
    return list(dict.fromkeys(keys))
