"""D2SMLoss: deep semantic statistics matching of images. Images -> features -> `StatisticsMatching`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from d2sm.divergence import Divergence
from d2sm.features import features as named_features
from d2sm.features import patches, wrap
from d2sm.frozen import exclude_from_state_dict
from d2sm.images import check_pair
from d2sm.matching import Reduction, StatisticsMatching


class D2SMLoss(nn.Module):
    """The distribution of restored images in a pretrained network's feature space should be that of clean images.

        x = G(noisy)                      restored            (B, 3, H, W)
        y                                 clean               (B, 3, H, W)
        f^x = Phi(x), f^y = Phi(y)        features            (N, D)      N = B, D = C h w          "w/o Internal"
                                                              (N, D)      N = B P, D = C (K/s)^2    "w/ Internal"
        Q^X, Q^Y                          queues              (q, D)      the newest N enter, the oldest N leave   (3)

        k(a, b) = (a.b / (|a| |b|) + 1) / 2                                      cosine kernel, in [0, 1]
        g'_ij   = k(Q^X_i, Q^X_j) / sum_{k != j} k(Q^X_k, Q^X_j)                 g_ij: the same over Q^Y           (2)
        L       = sum_j sum_{i != j} g'_ij log(g'_ij / g_ij)                     KL(restored || clean), >= 0       (1)

    P patches of K x K input pixels in a crop; s the stride of Phi. Gradient flows through f^x of this mini-batch only,
    in its similarities to itself and to the history. `StatisticsMatching` computes L in O(N q D).

    Args:
        features: Phi: network and layer ("vgg19.conv5_4", "efficientnet_lite0.blocks.4", ...), or any module
            (B, 3, H, W) -> (B, C, h, w). It is frozen, kept in eval mode and out of `state_dict()`.
        queue_size: q, samples stored.
        patch_size: K, side of an internal patch in input pixels, a multiple of the features' stride; None: each crop is
            one sample.
        divergence: "kl" (eq. (1)), "inverse_kl" or "jsd".
        reduction: "mean" divides eq. (1) by the number of stored samples; "sum" is eq. (1).
        weights: file with Phi's weights, for a named network; None: those installed, see `features.features`.
        queue_dtype, gather_dtype: see `StatisticsMatching`.

    Raises:
        ValueError: an unknown network, layer or option, missing weights, or a patch size that does not fit the stride.

    Example:
        >>> loss = D2SMLoss(nn.Conv2d(3, 8, 4, stride=4), queue_size=64, patch_size=8)
        >>> clean = torch.rand(2, 3, 32, 32)
        >>> restored = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        >>> loss(restored, clean).backward()
        >>> restored.grad.abs().sum() > 0
        tensor(True)

    Source: "Deep Semantic Statistics Matching (D2SM) Denoising Network", ECCV 2022, arXiv 2207.09302, eq. (1) to (3).
    """

    def __init__(
        self,
        features: str | nn.Module = "vgg19.conv5_4",
        queue_size: int = 1024,
        patch_size: int | None = None,
        divergence: Divergence = "kl",
        *,
        reduction: Reduction = "mean",
        weights: str | Path | None = None,
        queue_dtype: torch.dtype | None = None,
        gather_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = named_features(features, weights=weights) if isinstance(features, str) else wrap(features)
        stride = self.features.stride
        if patch_size is not None and (patch_size < 1 or patch_size % stride):
            raise ValueError(f"patch_size={patch_size}: must be a positive multiple of the features' stride, {stride}")
        self.patch_size = patch_size
        self._patch_cells = None if patch_size is None else patch_size // stride  # side in cells of the feature map
        self.matching = StatisticsMatching(
            queue_size, divergence, reduction=reduction, queue_dtype=queue_dtype, gather_dtype=gather_dtype
        )
        self._range_checked = False
        exclude_from_state_dict(self, "features")  # Phi's weights have a file of their own

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Compare two batches of images. In training mode their features enter the queues.

        Args:
            restored, clean: (B, 3, H, W) RGB in [0, 1]; `restored` may leave the range as far as noise does.

        Returns:
            A scalar >= 0 in float32, differentiable by `restored`.

        Raises:
            ValueError: wrong shapes, devices or ranges, crops that patches do not tile, or queues too small.
        """
        self._check(restored, clean)
        with torch.no_grad():
            f_y = patches(self.features(clean), side=self._patch_cells)
        f_x = patches(self.features(restored), side=self._patch_cells)
        return self.matching(f_x, f_y)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the queues; Phi stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def _check(self, restored: Tensor, clean: Tensor) -> None:
        check_pair(restored, clean)
        for axis, size in zip(("H", "W"), clean.shape[2:], strict=True):
            if self.patch_size and size % self.patch_size:
                raise ValueError(
                    f"patch_size={self.patch_size}: does not divide {axis}={size} of the images; crop them so"
                )
        # Reading a value makes the host wait for an accelerator, so there only the first step is checked.
        first = not self._range_checked
        if first or clean.device.type == "cpu":
            _check_range("clean", clean, -1e-3, 1 + 1e-3)
        if first:  # wide: an untrained network may stray, and later values are up to the optimizer
            _check_range("restored", restored.detach(), -10.0, 11.0)
            self._range_checked = True


def _check_range(name: str, images: Tensor, low: float, high: float) -> None:
    smallest, largest = images.min().item(), images.max().item()
    if not (low <= smallest and largest <= high):  # written so that NaN is refused too
        raise ValueError(
            f"{name}: values from {smallest:.3g} to {largest:.3g}; give images in [0, 1], not 0..255 or normalised"
        )
