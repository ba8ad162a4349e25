"""Synthetic haze: light is lost on its way to the camera, and the haze's own light is added (Koschmieder's model).

degraded = t * clean + (1 - t) * airlight, with the transmission t = exp(-level * depth). No depth is known of a
photograph, so it is made up: that of a plane seen by a camera above it, 1 at the horizon and above, less towards the
bottom of the image. Buildings and cars stand on no such plane: this haze is an exercise, no model of real fog.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """What is drawn for an image.

    Attributes:
        horizon: its row, as a part of the image's height from the top, in [0.3, 0.6].
        steepness: how fast the plane comes near below the horizon, in [2, 12].
        airlight: colour of the haze, the same grey in all channels, in [0.8, 1].
    """

    horizon: float
    steepness: float
    airlight: float


def haze(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `haze`. What is a crop of a photograph in training is taken for a whole image here.

    Args:
        level: (B,) optical depth at the horizon, from 0 (none): 1 leaves e^-1 = 37 % of the light from there.

    Returns:
        (B, 3, H, W).
    """
    hazy = []
    for image, density, seed in zip(images, level.tolist(), seeds, strict=True):
        view = view_of(seed)
        lost = torch.exp(-density * depth(image.shape[-2], view))
        lost = lost.to(image.device, image.dtype, non_blocking=True)[:, None]
        hazy.append(lost * image + (1 - lost) * view.airlight)
    return torch.stack(hazy)


def view_of(seed: int) -> View:
    """The view that a seed stands for; the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    a, b, c = torch.rand(3, generator=generator, dtype=torch.float64, device="cpu").tolist()
    return View(0.3 + 0.3 * a, 2 + 10 * b, 0.8 + 0.2 * c)


def depth(height: int, view: View) -> Tensor:
    """The depth of each row (H,) float64, in (0, 1]: 1 at the horizon and above."""
    rows = (torch.arange(height, dtype=torch.float64, device="cpu") + 0.5) / height
    return 1 / (1 + view.steepness * (rows - view.horizon).clamp(min=0))
