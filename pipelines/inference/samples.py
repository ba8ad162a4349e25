"""Photographs as tensors: clean, and the noisy ones that are restored."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2sm.noise import add_noise, seed_of
from pipelines.config import Config
from pipelines.data.items import Photograph


def noisy_images(config: Config, name: str, photograph: Photograph) -> list[tuple[str, float, Tensor]]:
    """(level, sigma, noisy (1, 3, H, W)) to restore: one a noise level, or the photographed one of a pair."""
    if photograph.noisy is not None:
        return [("pair", config.noise.sigma[0], tensor(photograph.noisy))]
    clean = tensor(photograph.clean)
    levels = torch.tensor(config.evaluate.sigmas)
    return [
        (f"{sigma:g}", sigma, add_noise(clean, sigma=torch.tensor([sigma]), seeds=[seed_of(name)]))
        for sigma in levels.tolist()
    ]


def tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
