"""What every objective asks of the two images it compares."""

from __future__ import annotations

from torch import Tensor


def check_pair(restored: Tensor, clean: Tensor) -> None:
    """ValueError unless both are (B, 3, H, W), and of the same shape: broadcasting would compare other images."""
    if restored.ndim != 4 or restored.shape[1] != 3:
        raise ValueError(f"restored: shape {tuple(restored.shape)}; give RGB images as (B, 3, H, W)")
    if restored.shape != clean.shape:
        raise ValueError(f"clean: shape {tuple(clean.shape)}, but restored has {tuple(restored.shape)}; must agree")
