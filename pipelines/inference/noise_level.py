"""The noise level of a photograph, estimated from its pixels alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 8  # pixels: side of the smallest image that is estimated


def estimate(pixels: NDArray[Any]) -> float:
    """The standard deviation of additive Gaussian noise, in units of 0..255; the mean of the channels' levels.

    By scikit-image's `estimate_sigma`: from the median of the absolute diagonal details of a wavelet transform, which
    are mostly noise (Donoho, Johnstone: Ideal spatial adaptation by wavelet shrinkage, 1994). Fine texture counts as
    noise, and clipped noise is estimated too low.

    Args:
        pixels: (H, W, 3) RGB or (H, W) grey, uint8 or uint16, sides from `SMALLEST` on.
    """
    from skimage.restoration import estimate_sigma  # here: its import takes long, and few commands need it

    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    levels = []
    for channel in np.moveaxis(channels.astype(np.float32), -1, 0):
        levels.append(0.0 if (channel == channel.flat[0]).all() else float(estimate_sigma(channel)))
    return float(np.mean(levels)) * 255 / float(np.iinfo(pixels.dtype).max)
