"""Segmenters of a few lines, named in configurations as module:callable."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def segmenter(weights: object = None) -> nn.Module:
    """A seeded convolution: a network as good as any for whether numbers agree."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 19, 9, padding=4).eval()


def of_three(weights: object = None) -> nn.Module:
    """As `segmenter`, for a label set of three classes."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 3, 9, padding=4).eval()


def by_brightness(weights: Path | None) -> nn.Module:
    return Brightness()


class Brightness(nn.Module):
    """A segmenter by brightness alone: 19 steps from black to white."""

    def forward(self, image: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, 19).view(1, -1, 1, 1)
        return -(image.mean(1, keepdim=True) - steps).abs()


def from_file(weights: Path | None) -> nn.Module:
    """The convolution of `segmenter`, with the number in a file added to its weights."""
    found = segmenter()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += float(Path(weights or "").read_text())
    return found
