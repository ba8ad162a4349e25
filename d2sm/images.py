"""What every loss requires of the two batches of images it compares, and of their labels."""

from __future__ import annotations

from torch import Tensor

IGNORED = 255
"""The train id of pixels without a label."""


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


def check_labels(labels: Tensor, images: Tensor) -> None:
    """Check that labels are (B, H, W) integers, one for each pixel of the images (B, 3, H, W).

    Raises:
        ValueError: another shape or type.
    """
    wanted = (len(images), *images.shape[2:])
    if labels.shape != wanted:
        raise ValueError(f"labels: shape {tuple(labels.shape)}; give {wanted}, one train id a pixel")
    if labels.is_floating_point():
        raise ValueError(f"labels: {labels.dtype}; give integer train ids")


def check_ids(labels: Tensor, *, classes: int) -> None:
    """Check that labels are train ids below `classes`, or `IGNORED`. Makes the host wait for an accelerator.

    Raises:
        ValueError: others, such as raw label ids.
    """
    lowest, highest = int(labels.min()), int(labels.masked_fill(labels == IGNORED, 0).max())
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"labels: hold ids from {lowest} to {highest}: needs train ids in 0..{classes - 1} (or {IGNORED}); map "
            "label ids to train ids first"
        )
