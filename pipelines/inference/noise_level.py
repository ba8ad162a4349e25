"""The noise level of a photograph, estimated from its pixels alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The high-pass filter of Daubechies' wavelet with two vanishing moments: it gives 0 for lines of any slope.
_DETAIL = (-0.48296291314453416, 0.8365163037378079, -0.2241438680420134, -0.12940952255126037)
_NORMAL = 0.6744897501960817  # median of the absolute value of a standard normal number
SMALLEST = 8  # pixels: side of the smallest image that is estimated


def estimate(pixels: NDArray[Any]) -> float:
    """The standard deviation of additive Gaussian noise, in units of 0..255; the mean of the channels' levels.

    From the median of the absolute diagonal details of a wavelet transform, which are mostly noise (Donoho, Johnstone:
    Ideal spatial adaptation by wavelet shrinkage, 1994), with the wavelet of scikit-image's `estimate_sigma`, whose
    numbers these are; that needs a further package. Details of exactly 0, as in clipped regions, are left out. Fine
    texture counts as noise, and clipped noise is estimated too low.

    Args:
        pixels: (H, W, 3) RGB or (H, W) grey, uint8 or uint16, sides from `SMALLEST` on.
    """
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    levels = [_level(channels[..., number].astype(np.float32)) for number in range(channels.shape[-1])]
    return float(np.mean(levels)) * 255 / float(np.iinfo(pixels.dtype).max)


def _level(channel: NDArray[np.float32]) -> float:
    details = np.abs(_details(_details(channel).T))
    details = details[details > 0]
    return float(np.median(details)) / _NORMAL if details.size else 0.0


def _details(lines: NDArray[np.float32]) -> NDArray[np.float32]:
    """The details along the columns, at every second place: (H, W) -> (H / 2 - 1, W)."""
    count = (len(lines) - len(_DETAIL)) // 2 + 1
    parts = (np.float32(weight) * lines[start : start + 2 * count : 2] for start, weight in enumerate(_DETAIL))
    return np.sum(list(parts), axis=0, dtype=np.float32)
