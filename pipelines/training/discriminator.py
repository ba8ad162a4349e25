"""The discriminator's optimizer in adversarial training: one step for each step of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from d2sm.distributed import average_gradients
from pipelines.config import Config
from pipelines.training.adam import adam, load

_BETAS = (
    0.5,
    0.999,
)  # Radford, Metz, Chintala: Deep Convolutional GANs, ICLR 2016: beta1 = 0.9 made training oscillate


class DiscriminatorOptimizer:
    """Adam on the discriminator, whose weights are part of the objective's state.

    Its learning rate is `loss.adversarial_lr` throughout, without the network's warm-up and schedule, because the
    discriminator has to keep up with a network that changes. Its gradient is clipped at `train.clip` separately.
    """

    def __init__(self, discriminator: nn.Module, config: Config) -> None:
        self.parameters = list(discriminator.parameters())
        self.lr, self.clip = config.loss.adversarial_lr, config.train.clip or float("inf")
        self.optimizer = adam(self.parameters, lr=self.lr, betas=_BETAS)

    def step(self) -> Tensor:
        """Average the gradients over the ranks, clip them, take a step, clear them; gives the norm before clipping."""
        average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore Adam's moments; the learning rate stays the configured one (see `TrainState.restore`)."""
        load(self.optimizer, state)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
