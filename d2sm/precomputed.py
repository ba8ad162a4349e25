"""A value whose gradient has been computed already, as a node of autograd."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def with_gradient(value: Tensor, by: Tensor, gradient: Tensor) -> Tensor:
    """`value`, a scalar, such that its gradient by the tensor `by` is `gradient`, of the shape of `by`.

    `gradient` may be of a wider type than `by`. The backward pass multiplies it by the loss scale, if there is one, and
    rounds it to the type of `by` only then: D2SM's gradients are too small for float16 without a loss scale.

    `gradient` is a constant, so there is no second derivative: a gradient that was computed with `create_graph=True`
    has the right value, and raises a RuntimeError when it is differentiated.
    """
    # Empty, but in the graph of `by`: through it a second derivative, by whatever `by` was made of, comes to the error.
    graph = by.unsqueeze(0)[:0].clone()
    return cast(Tensor, _WithGradient.apply(by, value, gradient, graph))


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, by: Tensor, value: Tensor, gradient: Tensor, graph: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, graph)
        ctx.dtype = by.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, graph = ctx.saved_tensors
        with torch.no_grad():
            by_input = (upstream.to(gradient.dtype) * gradient).to(ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            by_input = _DifferentiatedOnce.apply(by_input, upstream, graph)
        return by_input, None, None, None


class _DifferentiatedOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, upstream: Tensor, graph: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "the gradient of D2SM or GradientBalance was differentiated (create_graph=True): they have no second "
            "derivative; keep them out of terms that need one, such as gradient penalties"
        )
