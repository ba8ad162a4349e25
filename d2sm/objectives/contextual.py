"""Contextual loss (Mechrez, Talmi, Zelnik-Manor: The Contextual Loss for Image Transformation with Non-Aligned Data,
ECCV 2018, eq. (1) to (5))."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.layers import Layers
from d2sm.objectives.pair import pairs

_EPSILON = 1e-5


class Contextual(nn.Module):
    """Every clean feature should be the one that some restored feature is closest to, wherever in the image.

        d_ij  = 1 - cosine of (x_i - m) and (y_j - m), m the mean of y        x restored, y clean, places i and j
        d~_ij = d_ij / (min_k d_ik + 1e-5)                                    (2)
        w_ij  = exp((1 - d~_ij) / h)                                          (3)
        CX_ij = w_ij / sum_k w_ik                                             (4)
        L     = -log(mean_j max_i CX_ij)                                      (1), (5)

    for each image by itself, averaged over images and layers. Memory grows with (h w)^2 of the layer, per image.

    Args:
        network, layers, weights: Phi, see `Layers`. The paper compares VGG-19's conv3_2 and conv4_2; of 512 x 512
            pixels the former alone needs a GB an image for each of the steps above.
        bandwidth: h. The paper's is 0.5.

    Raises:
        ValueError: as `Layers`, or on a bandwidth that is not positive.
    """

    def __init__(
        self,
        network: str = "vgg19",
        layers: Sequence[str] = ("conv4_2",),
        *,
        bandwidth: float = 0.5,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not bandwidth > 0:
            raise ValueError(f"bandwidth={bandwidth}: must be positive; the paper's is 0.5")
        self.bandwidth = bandwidth
        self.layers = Layers(network, layers, weights=weights)

    def forward(self, *, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32.

        Raises:
            ValueError: on other shapes, or images smaller than a cell of the deepest layer.
        """
        maps = pairs(self.layers, restored=restored, clean=clean)
        with torch.autocast(clean.device.type, enabled=False):
            images = [
                _apart(x.flatten(1), y.flatten(1), self.bandwidth)
                for batch, others in maps
                for x, y in zip(batch, others, strict=True)
            ]
        return torch.stack(images).mean()


def _apart(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """The loss of one image at one layer; x and y are (C, places)."""
    mean = y.mean(1, keepdim=True)
    similar = F.normalize(x - mean, dim=0).T @ F.normalize(y - mean, dim=0)  # i down, j across
    distance = (1 - similar).clamp(min=0)
    relative = distance / (distance.amin(1, keepdim=True) + _EPSILON)
    context = ((1 - relative) / bandwidth).softmax(1)
    return -context.amax(0).mean().log()
