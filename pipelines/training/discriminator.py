"""The other side of adversarial training: the discriminator's own optimizer, a step for each of the network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.distributed import average_gradients
from pipelines.config import Config

_BETAS = (0.5, 0.999)  # Radford, Metz, Chintala: Deep Convolutional GANs, ICLR 2016; 0.9 lets the two sides oscillate


class DiscriminatorOptimizer:
    """Descends the discriminator's loss. Its weights are saved with the objective, which it is a part of.

    Its rate stays `loss.adversarial_lr`, without the network's warm-up and schedule: it has to keep up with a network
    that moves, and one that hardly moves any more needs no slower judge. It is clipped by `train.clip`, by itself.
    """

    def __init__(self, discriminator: nn.Module, config: Config) -> None:
        self.parameters = list(discriminator.parameters())
        self.lr, self.clip = config.loss.adversarial_lr, config.train.clip or float("inf")
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.lr, betas=_BETAS)

    def step(self) -> Tensor:
        """Descend once along the gradients that are there, averaged over the workers; gives their norm."""
        average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, at the configured rate (see `Worker.restore`)."""
        self.optimizer.load_state_dict(dict(state))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
