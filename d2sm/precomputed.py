"""A value whose gradient has been computed already, as a node of autograd."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def with_gradient(value: Tensor, by: Tensor, gradient: Tensor) -> Tensor:
    """`value`, a scalar, such that its gradient by the tensor `by` is `gradient`, of the shape of `by`.

    `gradient` may be of a wider type than `by`. The backward pass multiplies it by the loss scale, if there is one, and
    rounds it to the type of `by` only then: D2SM's gradients are too small for float16 without a loss scale.
    """
    return cast(Tensor, _WithGradient.apply(by, value, gradient))


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, by: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = by.dtype
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (upstream.to(gradient.dtype) * gradient).to(ctx.dtype), None, None
