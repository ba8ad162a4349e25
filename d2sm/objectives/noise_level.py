"""CBDNet's own two terms on its estimate of the noise (Guo et al., CVPR 2019, section 3.3).

Its objective is mean squared error + 0.5 x asymmetry + 0.05 x total variation.
"""

from __future__ import annotations

from torch import Tensor

_ALPHA = 0.3  # weight of over-estimation; under-estimation, which leaves noise in the image, has 1 - alpha


def asymmetry(*, estimate: Tensor, sigma: Tensor) -> Tensor:
    """Mean of |0.3 - 1[estimate < true]| (estimate - true)^2: too low an estimate weighs 0.7, too high a one 0.3.

    Args:
        estimate: (B, 3, H, W) standard deviation of the noise in units of the image, see `CBDNet.with_estimate`.
        sigma: (B,) the true one, in units of 0..255.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: on another shape.
    """
    if estimate.ndim != 4 or sigma.shape != estimate.shape[:1]:
        raise ValueError(f"sigma: {tuple(sigma.shape)} for an estimate of {tuple(estimate.shape)}; give one an image")
    error = estimate - (sigma / 255).view(-1, 1, 1, 1)
    weight = (_ALPHA - (error < 0).to(error.dtype)).abs()
    return (weight * error.square()).mean()


def total_variation(*, estimate: Tensor) -> Tensor:
    """Mean squared difference of vertical neighbours, plus that of horizontal ones. Does not grow with the batch.

    Args:
        estimate: (B, 3, H, W), H and W at least 2.

    Returns:
        A scalar >= 0.
    """
    return estimate.diff(dim=2).square().mean() + estimate.diff(dim=3).square().mean()
