"""Blur: by a lens out of focus, as a Gaussian, and by straight motion. Beyond an image its edge is repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from d2sm.precision import for_convolution

_TRUNCATE = 4  # standard deviations, at which the Gaussian ends
_POINTS = 4  # of a motion, per pixel of its length


def gaussian_blur(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `blur`: convolution with an isotropic Gaussian. Nothing is random.

    Args:
        level: (B,) its standard deviation in pixels; 0 changes nothing.

    Returns:
        (B, 3, H, W).
    """
    return torch.stack([_gaussian(image, sigma) for image, sigma in zip(images, level.tolist(), strict=True)])


def motion_blur(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `motion`: the mean over a straight path of constant speed, whose angle is drawn from the seed.

    Args:
        level: (B,) length of the path in pixels; 0 changes nothing.

    Returns:
        (B, 3, H, W).
    """
    blurred = []
    for image, length, seed in zip(images, level.tolist(), seeds, strict=True):
        kernel = motion_kernel(length, angle_of(seed)).to(images.device, images.dtype, non_blocking=True)
        blurred.append(_convolved(image, kernel))
    return torch.stack(blurred)


def angle_of(seed: int) -> float:
    """The angle of a motion in radians, uniform in [0, pi); the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return math.pi * float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))


def motion_kernel(length: float, angle: float) -> Tensor:
    """The kernel (K, K), K odd, of a path: points on it, each shared by its four pixels (bilinear), which sum to 1."""
    radius = math.ceil(length / 2)
    count = _POINTS * math.ceil(length) + 1
    along = torch.linspace(-length / 2, length / 2, count, dtype=torch.float64, device="cpu")
    rows, columns = radius + along * math.sin(angle), radius + along * math.cos(angle)
    side = 2 * radius + 2  # with a last row and column for rounding
    kernel = torch.zeros(side, side, dtype=torch.float64, device="cpu")
    top, left = rows.floor().long().clamp(0, 2 * radius), columns.floor().long().clamp(0, 2 * radius)
    down, right = rows - top, columns - left
    for row, column, weight in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        kernel.index_put_((row, column), weight / count, accumulate=True)
    return kernel[:-1, :-1].float()


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    """(3, H, W), blurred along the rows and then along the columns."""
    radius = int(_TRUNCATE * sigma + 0.5)
    if not radius:
        return image
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).to(image.device, image.dtype, non_blocking=True)
    return _convolved(_convolved(image, kernel[None]), kernel[:, None])


def _convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """(3, H, W) convolved with a kernel (K, L), both odd, that equals itself turned by half a turn."""
    height, width = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = for_convolution(F.pad(image[:, None].contiguous(), (width, width, height, height), mode="replicate"))
    return F.conv2d(padded, kernel[None, None].to(padded.dtype))[:, 0].to(image.dtype)
