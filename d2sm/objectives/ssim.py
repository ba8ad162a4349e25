"""Structural dissimilarity (Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE TIP 2004, eq. (13)).

Ours, since the convention must be that of `d2sm.metrics.ssim`, at which the restored images are measured: full
resolution (some libraries halve large images by default), a Gaussian window of 11 with sigma 1.5 that never leaves the
image, biased variances, data range 1, averaged over pixels and channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2sm.objectives.pair import check_pair

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def dissimilarity(*, restored: Tensor, clean: Tensor) -> Tensor:
    """1 - SSIM, averaged over the batch.

    Args:
        restored, clean: (B, 3, H, W) in [0, 1], H and W at least 11; `restored` may leave the range.

    Returns:
        A scalar in [0, 2], 0 where both are equal, in float32 or wider.

    Raises:
        ValueError: on other shapes, or images smaller than the window.
    """
    check_pair(restored, clean)
    if min(clean.shape[2:]) < _WINDOW:
        raise ValueError(f"clean: {clean.shape[2]}x{clean.shape[3]} pixels: SSIM needs at least {_WINDOW} a side")
    with torch.autocast(clean.device.type, enabled=False):  # variances are differences of large numbers
        kind = torch.promote_types(restored.dtype, torch.float32)
        x, y = restored.to(kind), clean.to(kind)
        x_mean, y_mean, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y])).unbind()
        luminance = (2 * x_mean * y_mean + _C1) / (x_mean**2 + y_mean**2 + _C1)
        covariance, variances = xy - x_mean * y_mean, xx - x_mean**2 + yy - y_mean**2
        return 1 - (luminance * (2 * covariance + _C2) / (variances + _C2)).mean()


def _blurred(maps: Tensor) -> Tensor:
    """Weighted means over the window, (..., H, W) -> (..., H - 10, W - 10)."""
    places = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-(places**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).view(1, 1, 1, -1)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.conv2d(F.conv2d(flat, window), window.transpose(2, 3))
    return out.view(*maps.shape[:-2], *out.shape[-2:])
