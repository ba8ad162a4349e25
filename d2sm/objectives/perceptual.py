"""Perceptual loss (Johnson, Alahi, Fei-Fei: Perceptual Losses for Real-Time Style Transfer, ECCV 2016, eq. (2))."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.layers import Layers


class Perceptual(nn.Module):
    """Mean squared difference of Phi's maps, averaged over the layers.

        L = mean_l |Phi_l(x) - Phi_l(y)|^2 / (C_l h_l w_l)                     (2)

    Squared, as in eq. (2); some later works take the absolute difference. It compares each restored image with its own
    clean image, where D2SM compares distributions.

    Args:
        network, layers, weights: Phi: "vgg19" and layers of it, None being the D2SM paper's, conv5_4; a name with a
            layer, several of these, or any module, as in `D2SMLoss`. See `Layers.of`.

    Raises:
        ValueError: as `Layers.of`.

    Example:
        >>> loss = Perceptual("squeezenet1_0", ("fire3",), weights="random")
        >>> clean = torch.rand(2, 3, 32, 32)
        >>> restored = (clean + 0.1).requires_grad_()
        >>> loss(restored, clean).backward()
        >>> bool(restored.grad.any())
        True
    """

    def __init__(
        self,
        network: str | Sequence[str] | nn.Module = "vgg19",
        layers: Sequence[str] | None = None,
        *,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.layers = Layers.of(network, layers, default=("conv5_4",), weights=weights)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32, 0 where equal.

        Raises:
            ValueError: as `Layers.of_both`.
        """
        maps = self.layers.of_both(restored, clean)
        return torch.stack([F.mse_loss(x, y) for x, y in maps]).mean()
