"""What objectives are given in tests: pairs of images, and a file of heads for LPIPS."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from d2sm.objectives.lpips import CHANNELS


def images(count: int = 2, height: int = 40, width: int = 48, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    clean = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return clean + 0.1 * torch.randn(clean.shape, generator=generator), clean


def write_heads(path: Path) -> Path:
    """Random heads for AlexNet under the published keys."""
    generator = torch.Generator().manual_seed(0)
    state = {
        f"lin{index}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for index, channels in enumerate(CHANNELS["alexnet"])
    }
    torch.save(state, path)
    return path
