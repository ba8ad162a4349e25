"""Precision that is not left to the module or the device: of state, and of convolutions."""

from __future__ import annotations

from collections.abc import Callable

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
