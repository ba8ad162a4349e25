"""State whose precision is part of its meaning, and so is not that of the module it belongs to."""

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
