"""Lost resolution: bicubic downsampling as in super-resolution, brought back to the image's own size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def downsample(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `downsample`: smaller by a factor, and larger again, both bicubic.

    The kernel is Keys' with a = -0.5, widened where an image is made smaller (antialiasing): that of MATLAB's imresize
    and of Pillow. The smaller image is not rounded to 8 bits. Nothing is random.

    Args:
        level: (B,) the factor, from 1 (which changes nothing); an image of H x W becomes one of round(H / level) x
            round(W / level) in between.

    Returns:
        (B, 3, H, W), not clipped: the kernel overshoots at edges.
    """
    height, width = images.shape[-2:]
    found = []
    for image, factor in zip(images, level.tolist(), strict=True):
        small = _resized(image[None], max(1, round(height / factor)), max(1, round(width / factor)))
        found.append(_resized(small, height, width)[0].to(images.dtype))
    return torch.stack(found)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    # antialias=True also chooses a = -0.5; without it torch takes -0.75
    wide = images.contiguous().to(torch.promote_types(images.dtype, torch.float32))  # a CPU has no kernel for half
    return F.interpolate(wide, (height, width), mode="bicubic", align_corners=False, antialias=True)
