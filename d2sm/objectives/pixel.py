"""The pixel losses: mean absolute and mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from d2sm.images import check_pair


class L1(nn.Module):
    """Mean of |x - y| over images, channels and pixels.

    Example:
        >>> import torch
        >>> restored, clean = torch.full((1, 3, 4, 4), 0.75, requires_grad=True), torch.full((1, 3, 4, 4), 0.5)
        >>> value = L1()(restored, clean)
        >>> value.backward()
        >>> value.item()
        0.25
    """

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) each -> a scalar >= 0 in float32 or wider, 0 where both are equal.

        Raises:
            ValueError: wrong or unequal shapes.
        """
        return l1_loss(*_checked(restored, clean))


class MSE(nn.Module):
    """Mean of (x - y)^2 over images, channels and pixels.

    Example:
        >>> import torch
        >>> restored, clean = torch.full((1, 3, 4, 4), 0.75, requires_grad=True), torch.full((1, 3, 4, 4), 0.5)
        >>> value = MSE()(restored, clean)
        >>> value.backward()
        >>> value.item()
        0.0625
    """

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) each -> a scalar >= 0 in float32 or wider, 0 where both are equal.

        Raises:
            ValueError: wrong or unequal shapes.
        """
        return mse_loss(*_checked(restored, clean))


def _checked(restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least: a mean over pixels in half precision has three digits, and a square may underflow."""
    check_pair(restored, clean)
    dtype = torch.promote_types(restored.dtype, torch.float32)
    return restored.to(dtype), clean.to(dtype)
