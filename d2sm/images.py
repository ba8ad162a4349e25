"""What every loss requires of the two batches of images it compares."""

from __future__ import annotations

from torch import Tensor


def check_pair(restored: Tensor, clean: Tensor) -> None:
    """Check that both are (B, 3, H, W) in floating point, B at least 1, of the same shape and on the same device.

    Broadcasting would hide a mistake, and the mean over no images is NaN.

    Raises:
        ValueError: names the argument, its shape, type or device, and what is needed.
    """
    for name, images in (("restored", restored), ("clean", clean)):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{name}: shape {tuple(images.shape)}; give RGB images as (B, 3, H, W)")
        if not images.is_floating_point():
            raise ValueError(f"{name}: {images.dtype}; give floating point in [0, 1], such as images of 0..255 / 255")
    if not len(restored):
        raise ValueError(f"restored: shape {tuple(restored.shape)} holds no images; give at least one")
    if restored.shape != clean.shape:
        raise ValueError(f"clean: shape {tuple(clean.shape)}, but restored has {tuple(restored.shape)}; must agree")
    if restored.device != clean.device:
        raise ValueError(f"clean: on {clean.device}, but restored is on {restored.device}; move one of them")
