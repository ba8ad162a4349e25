"""Precision that is not left to the module or the device: of state, and of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def keeping_dtype(apply: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`apply`, which a module calls for each of its tensors when it is moved or converted, without a change of dtype.

    Moves to another device pass. `.half()`, `.double()` and `.to(dtype)` change nothing: running sums rounded to half
    precision are wrong from then on, also when they are converted back.
    """

    def applied(tensor: Tensor) -> Tensor:
        result = apply(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return applied


def for_convolution(images: Tensor) -> Tensor:
    """The images in the precision in which they may be convolved with a fixed kernel: float64 on a GPU.

    cuDNN computes convolutions of float32 in TF32 unless told otherwise: it rounds the images to 11 bits, which is too
    coarse for differences of their means. Its settings are the process's, and hold when the gradient is computed too.
    """
    return images.double() if images.device.type == "cuda" else images


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Within the block cuDNN computes convolutions of float32 in float32, not in TF32, its default; then as before.

    For networks that measure, or whose images are kept: TF32 rounds what it convolves to 11 bits. The setting is the
    process's: of two threads' blocks one must lie within the other, or after it. Half precision and CPUs are as before.
    """
    # Not by the older cudnn.allow_tf32, of which some versions of torch warn.
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
