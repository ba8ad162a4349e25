"""Backbones from the configuration's model section."""

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
    """A backbone with the interface that training needs; DistributedDataParallel wraps it and calls its `forward`.

    Args:
        network: from `build`.
        estimate: whether to return the network's estimate of the noise too, for the objectives that use it. The network
            then is one of those in `BACKBONES` with `estimates_noise`.
    """

    def __init__(self, network: Denoiser, *, estimate: bool) -> None:
        super().__init__()
        self.network, self.estimate = network, estimate

    def forward(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """Restore a batch.

        Args:
            noisy: (B, 3, H, W).
            sigma: (B,), in units of 0..255; blind networks ignore it.

        Returns:
            restored (B, 3, H, W), and the estimate of the noise (B, 3, H, W) or None.
        """
        if self.estimate:
            return cast(CBDNet, self.network).with_estimate(noisy)
        return self.network(noisy, sigma), None
