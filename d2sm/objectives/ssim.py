"""Structural dissimilarity (Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE TIP 2004, eq. (13)).

Written here so that its convention is that of `d2sm.metrics.ssim`, by which restored images are evaluated: full
resolution (some libraries halve large images by default), a Gaussian window of 11 with sigma 1.5 that stays within the
image, biased variances, data range 1, averaged over pixels and channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.images import RangeCheck, check_pair
from d2sm.precision import for_convolution

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


class SSIMLoss(nn.Module):
    """1 - SSIM, averaged over the batch.

        SSIM = (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))         (13)

    with the means m, variances s^2 and covariance s_xy of every window.

    Example:
        >>> clean = torch.rand(2, 3, 16, 16)
        >>> restored = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        >>> SSIMLoss()(restored, clean).backward()
        >>> bool(restored.grad.any())
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.check_range = RangeCheck()

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Compare two batches.

        Args:
            restored, clean: (B, 3, H, W) in [0, 1], H and W at least 11; `restored` may leave the range.

        Returns:
            A scalar in [0, 2], 0 where both are equal, in float32 or wider.

        Raises:
            ValueError: wrong or unequal shapes, another range (`RangeCheck`), or images smaller than the window.
        """
        check_pair(restored, clean)
        self.check_range(restored, clean)
        if min(clean.shape[2:]) < _WINDOW:
            raise ValueError(f"clean: {clean.shape[2]}x{clean.shape[3]} pixels: SSIM needs at least {_WINDOW} a side")
        with torch.autocast(clean.device.type, enabled=False):  # variances are differences of large numbers
            dtype = torch.promote_types(restored.dtype, torch.float32)
            x, y = for_convolution(restored.to(dtype)), for_convolution(clean.to(dtype))
            x_mean, y_mean, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y])).unbind()
            luminance = (2 * x_mean * y_mean + _C1) / (x_mean**2 + y_mean**2 + _C1)
            covariance, variances = xy - x_mean * y_mean, xx - x_mean**2 + yy - y_mean**2
            return (1 - (luminance * (2 * covariance + _C2) / (variances + _C2)).mean()).to(dtype)


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian-weighted means of every window, (..., H, W) -> (..., H - 10, W - 10)."""
    offsets = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).view(1, 1, 1, -1)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.conv2d(F.conv2d(flat, window), window.transpose(2, 3))
    return out.view(*maps.shape[:-2], *out.shape[-2:])
