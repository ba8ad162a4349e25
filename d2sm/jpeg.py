"""JPEG as files have it: coded and decoded by a real codec (libjpeg, through Pillow), on the CPU."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SUBSAMPLING = "4:2:0"  # of the chroma, as cameras and most programs write it


def jpeg(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `jpeg`: images as a baseline JPEG file of this quality gives them back.

    The 8 x 8 blocks start at the image's top left corner. Nothing is random. Images on a GPU are copied to the CPU and
    back, for which the host waits.

    Args:
        level: (B,) quality from 1 to 100, rounded; 75 is a usual one.

    Returns:
        (B, 3, H, W), multiples of 1/255 in [0, 1]; values outside are clipped before.
    """
    from PIL import Image  # torchvision requires it

    pixels = images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for image, quality in zip(pixels, level.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(
            file, "JPEG", quality=round(quality), subsampling=SUBSAMPLING, progressive=False, optimize=False
        )
        with Image.open(file) as found:
            decoded.append(torch.from_numpy(np.array(found)))
    return torch.stack(decoded).permute(0, 3, 1, 2).to(images.device, images.dtype) / 255
