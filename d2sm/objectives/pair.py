"""What every objective asks of the two images it compares."""

from __future__ import annotations

import torch
from torch import Tensor

from d2sm.layers import Layers


def check_pair(restored: Tensor, clean: Tensor) -> None:
    """ValueError unless both are (B, 3, H, W), and of the same shape: broadcasting would compare other images."""
    if restored.ndim != 4 or restored.shape[1] != 3:
        raise ValueError(f"restored: shape {tuple(restored.shape)}; give RGB images as (B, 3, H, W)")
    if restored.shape != clean.shape:
        raise ValueError(f"clean: shape {tuple(clean.shape)}, but restored has {tuple(restored.shape)}; must agree")


def pairs(layers: Layers, *, restored: Tensor, clean: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Phi's maps of both images, layer by layer; gradient flows through those of `restored` alone.

    Raises:
        ValueError: on other shapes, or images smaller than a cell of the deepest layer.
    """
    check_pair(restored, clean)
    with torch.no_grad():
        wanted = layers(clean)
    return list(zip(layers(restored), wanted, strict=True))
