"""Perceptual loss (Johnson, Alahi, Fei-Fei: Perceptual Losses for Real-Time Style Transfer, ECCV 2016, eq. (2))."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.layers import Layers
from d2sm.objectives.pair import pairs


class Perceptual(nn.Module):
    """Mean squared difference of Phi's maps, averaged over the layers.

    Squared, as eq. (2) has it: the squared Euclidean distance divided by C h w. (Some later works take the absolute
    difference.) It compares restored and clean sample to sample, where D2SM compares distributions.

    Args:
        network, layers, weights: Phi, see `Layers`. The paper's Phi: "vgg19", ("conv5_4",).

    Raises:
        ValueError: as `Layers`.
    """

    def __init__(
        self, network: str = "vgg19", layers: Sequence[str] = ("conv5_4",), *, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        self.layers = Layers(network, layers, weights=weights)

    def forward(self, *, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32.

        Raises:
            ValueError: on other shapes, or images smaller than a cell of the deepest layer.
        """
        maps = pairs(self.layers, restored=restored, clean=clean)
        return torch.stack([F.mse_loss(x, y) for x, y in maps]).mean()
