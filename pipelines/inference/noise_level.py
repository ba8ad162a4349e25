"""The noise level of a photograph, estimated from its pixels alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 8  # pixels: side of the smallest image that is estimated
_MEDIAN = 0.6744897501960817  # of the absolute value of a standard normal variable
_ROUNDING = 1e-6  # a step of one value in 8 or 16 bits gives details from 1e-2 on


def estimate(pixels: NDArray[Any]) -> float:
    """The standard deviation of additive Gaussian noise, in units of 0..255; the mean of the channels' levels.

    From the median of the absolute diagonal details of a wavelet transform, which are mostly noise (Donoho, Johnstone:
    Ideal spatial adaptation by wavelet shrinkage, 1994); the numbers of scikit-image's `estimate_sigma` where no area
    is of one colour. Such areas, as of clipped white or black, show no noise that was there before and are left out; an
    image of nothing else has level 0. Fine texture counts as noise, and clipped noise is estimated too low.

    Args:
        pixels: (H, W, 3) RGB or (H, W) grey, uint8 or uint16, sides from `SMALLEST` on.
    """
    import pywt  # here: few commands need it

    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    levels = []
    for channel in np.moveaxis(channels.astype(np.float32), -1, 0):
        details = np.abs(pywt.dwtn(channel, "db2")["dd"])
        # scikit-image leaves out exact zeros, which of one colour only black gives; others give rounding.
        details = details[details > _ROUNDING]
        levels.append(float(np.median(details)) / _MEDIAN if details.size else 0.0)
    return float(np.mean(levels)) * 255 / float(np.iinfo(pixels.dtype).max)
