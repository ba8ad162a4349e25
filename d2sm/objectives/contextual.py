"""Contextual loss (Mechrez, Talmi, Zelnik-Manor: The Contextual Loss for Image Transformation with Non-Aligned Data,
ECCV 2018, eq. (1) to (5))."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.layers import Layers

_EPSILON = 1e-5


class Contextual(nn.Module):
    """Every clean feature should be the nearest neighbour of some restored feature, anywhere in the image.

        d_ij  = 1 - cosine of (x_i - m) and (y_j - m), m the mean of y        x restored, y clean, positions i and j
        d~_ij = d_ij / (min_k d_ik + 1e-5)                                    (2)
        w_ij  = exp((1 - d~_ij) / h)                                          (3)
        CX_ij = w_ij / sum_k w_ik                                             (4)
        L     = -log(mean_j max_i CX_ij)                                      (1), (5)

    computed for each image, averaged over images and layers. Memory per image: O(n^2) for a layer of n positions.

    Args:
        network, layers, weights: Phi: "vgg19" and layers of it, None being conv4_2; a name with a layer, several of
            these, or any module, as in `D2SMLoss`. See `Layers.of`. The paper compares VGG-19's conv3_2 and conv4_2; at
            512 x 512 pixels conv3_2 needs about 1 GB an image for each of the matrices above.
        bandwidth: h. The paper's is 0.5.

    Raises:
        ValueError: as `Layers.of`, or a bandwidth that is not positive.

    Example:
        >>> loss = Contextual("squeezenet1_0", ("fire3",), weights="random")
        >>> clean = torch.rand(2, 3, 32, 32)
        >>> restored = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        >>> loss(restored, clean).backward()
        >>> bool(restored.grad.any())
        True
    """

    def __init__(
        self,
        network: str | Sequence[str] | nn.Module = "vgg19",
        layers: Sequence[str] | None = None,
        *,
        bandwidth: float = 0.5,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not bandwidth > 0:
            raise ValueError(f"bandwidth={bandwidth}: must be positive; the paper's is 0.5")
        self.bandwidth = bandwidth
        self.layers = Layers.of(network, layers, default=("conv4_2",), weights=weights)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32.

        Nearly 0, but not quite, where both are equal: every position has other positions at a finite distance.

        Raises:
            ValueError: as `Layers.of_both`.
        """
        maps = self.layers.of_both(restored, clean)
        with torch.autocast(clean.device.type, enabled=False):
            losses = [
                self._of_image(x.flatten(1), y.flatten(1))
                for of_restored, of_clean in maps
                for x, y in zip(of_restored, of_clean, strict=True)
            ]
        return torch.stack(losses).mean()

    def _of_image(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of one image at one layer; x and y are (C, n)."""
        mean = y.mean(1, keepdim=True)
        cosine = F.normalize(x - mean, dim=0).T @ F.normalize(y - mean, dim=0)  # (n, n): i down, j across
        distance = (1 - cosine).clamp(min=0)
        relative = distance / (distance.amin(1, keepdim=True) + _EPSILON)  # (2)
        similarity = ((1 - relative) / self.bandwidth).softmax(1)  # (3), (4)
        return -similarity.amax(0).mean().log()  # (1), (5)
