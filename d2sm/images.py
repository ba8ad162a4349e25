"""What every loss requires of the two batches of images it compares, and of their labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

IGNORED = 255
"""The train id of pixels without a label."""


def check_images(name: str, images: Tensor) -> None:
    """Check that images are (B, 3, H, W) in floating point.

    Raises:
        ValueError: another shape or type; names the argument.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: shape {tuple(images.shape)}; give RGB images as (B, 3, H, W)")
    if not images.is_floating_point():
        raise ValueError(f"{name}: {images.dtype}; give floating point in [0, 1], such as images of 0..255 / 255")


def check_pair(restored: Tensor, clean: Tensor) -> None:
    """Check that both are (B, 3, H, W) in floating point, not empty, of the same shape and on the same device.

    Broadcasting would hide a mistake, and the mean over no images is NaN. The wrong order would not be noticed either:
    most objectives have no gradient by `clean`, and a network would be trained without them.

    Raises:
        ValueError: names the argument, its shape, type or device, and what is needed.
    """
    for name, images in (("restored", restored), ("clean", clean)):
        check_images(name, images)
    if not restored.numel():
        raise ValueError(f"restored: shape {tuple(restored.shape)} holds no pixels; give at least one image")
    if restored.shape != clean.shape:
        raise ValueError(f"clean: shape {tuple(clean.shape)}, but restored has {tuple(restored.shape)}; must agree")
    if restored.device != clean.device:
        raise ValueError(f"clean: on {clean.device}, but restored is on {restored.device}; move one of them")
    if torch.is_grad_enabled() and clean.requires_grad and not restored.requires_grad:
        raise ValueError(
            "clean: requires a gradient and restored does not; the order is (restored, clean), or detach clean"
        )


def check_range(name: str, images: Tensor, *, margin: float = 1e-3, finite: bool = True) -> bool:
    """Check that the values of images are in [0, 1], up to a margin. Makes the host wait for an accelerator.

    Args:
        images: of any shape, not empty.
        finite: whether values that are not finite are refused; otherwise images that hold one are not checked.

    Returns:
        Whether they were checked.

    Raises:
        ValueError: other values. Names the argument.
    """
    lowest, highest = torch.stack(images.detach().aminmax()).tolist()
    if not finite and not (math.isfinite(lowest) and math.isfinite(highest)):
        return False
    if not (-margin <= lowest and highest <= 1 + margin):  # written so that NaN is refused too
        raise ValueError(
            f"{name}: values from {lowest:.3g} to {highest:.3g}; give images in [0, 1], not 0..255 or normalised"
        )
    return True


def check_restored_range(restored: Tensor, *, finite: bool = False) -> bool:
    """As `check_range`, but wide: an untrained network may stray."""
    return check_range("restored", restored, margin=10.0, finite=finite)


class RangeCheck:
    """The range of the two images of an objective that assumes [0, 1].

    Reading a value makes the host wait for an accelerator, so images there are checked in the first call alone. On the
    CPU `clean` is checked in every call; `restored` is not, because its later values are up to the optimizer.

    Attributes:
        passed: whether a first call was checked.
    """

    def __init__(self) -> None:
        self.passed = False

    def __call__(self, restored: Tensor, clean: Tensor | None = None, *, finite: bool = False) -> None:
        """Check a pair that passed `check_pair`.

        Args:
            clean: None: an objective that does not use its values.
            finite: whether `restored` that is not finite is refused; else the next call counts as the first.

        Raises:
            ValueError: see `check_range` and `check_restored_range`.
        """
        first = not self.passed
        if clean is not None and (first or clean.device.type == "cpu"):
            check_range("clean", clean)
        if first:
            self.passed = check_restored_range(restored, finite=finite)


def skip_range_checks(objective: nn.Module) -> None:
    """Let the next call of an objective, and of its parts, check no restored images: it continues a training that was
    stopped, whose restored images may have left [0, 1]."""
    for part in objective.modules():
        if isinstance(check := getattr(part, "check_range", None), RangeCheck):
            check.passed = True


def check_labels(labels: Tensor, images: Tensor) -> None:
    """Check that labels are (B, H, W) integers, one for each pixel of the images (B, 3, H, W), on their device.

    Raises:
        ValueError: another shape, type or device.
    """
    wanted = (len(images), *images.shape[2:])
    if labels.shape != wanted:
        raise ValueError(f"labels: shape {tuple(labels.shape)}; give {wanted}, one train id a pixel")
    if labels.is_floating_point():
        raise ValueError(f"labels: {labels.dtype}; give integer train ids")
    if labels.device != images.device:
        raise ValueError(f"labels: on {labels.device}, but the images are on {images.device}; move one of them")


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
