"""From the configuration's model section to a network."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from d2sm.models import BACKBONES, CBDNet, Denoiser
from pipelines.sections import Model


def build(model: Model) -> Denoiser:
    """The backbone, an entry of `d2sm.models.BACKBONES`, initialised from torch's current seed."""
    backbone = BACKBONES[model.name]
    return backbone.load()(**{option: getattr(model, option) for option in backbone.options})


class TrainingModule(nn.Module):
    """A backbone as a training step calls it, blind or not: DistributedDataParallel wraps this, which calls forward.

    Args:
        network: from `build`.
        estimate: also give its estimate of the noise, for the objectives that judge it (CBDNet).
    """

    def __init__(self, network: nn.Module, *, estimate: bool) -> None:
        super().__init__()
        self.network, self.estimate = network, estimate

    def forward(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) and (B,) -> restored, and the estimate (B, 3, H, W) or None."""
        if self.estimate:
            return cast(CBDNet, self.network).with_estimate(noisy)
        return (self.network(noisy) if self.network.blind else self.network(noisy, sigma)), None
