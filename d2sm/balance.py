"""GradientBalance: a weight that keeps the ratio of two losses' gradients while both change in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from d2sm.distributed import sum_over_workers
from d2sm.precision import keeping_dtype
from d2sm.precomputed import with_gradient

# Of both backward passes: D2SM's gradients are too small for a network that runs in float16, and the loss scale of a
# `torch.amp.GradScaler` does not reach what is computed here. This one fits float16, and no wider type loses a bit by
# a power of 2.
_LOSS_SCALE = 2.0**15


class GradientBalance(nn.Module):
    """The sum of two losses, the second scaled so that its gradient has `ratio` times the length of the first's.

        g = d reference / d restored,   h = d other / d restored          over the crops of all ranks
        G <- m G + (1 - m) |g|^2,       H <- m H + (1 - m) |h|^2           from 0; m: momentum
        s = ratio sqrt(G / H)
        L = reference + s other,        dL / d restored = g + s h          s is a constant of the step

    A step in which h is zero does not count: it leaves G and H as they are. D2SM's h is zero until its queues hold
    three samples. G and H are running means over the same steps, which both lack the same factor 1 - m^steps, so it
    cancels: the first step that counts has exactly the ratio asked for. Later steps have it on average, and s |h| is at
    most 1 / sqrt(1 - m) times ratio times the largest |g| so far, however much longer than before h is. With m = 0
    every step has the ratio.

    The lengths are those by the restored images. The gradients by the parameters of a network may have another ratio:
    what differs from crop to crop cancels out in them.

    Cost: none beside the norms. Both gradients are computed here, once, and the backward pass begins from their sum.
    Nothing is read from the device. In eval mode the means stay as they are.

    Args:
        ratio: > 0.
        momentum: m, in [0, 1).

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> balance = GradientBalance(ratio=0.5)
        >>> clean = torch.zeros(1, 3, 4, 4)
        >>> restored = torch.ones(1, 3, 4, 4, requires_grad=True)
        >>> total = balance(restored, (restored - clean).abs().mean(), 7 * restored.square().mean())
        >>> total.backward()
        >>> round(restored.grad.sum().item(), 4), round(balance.scale.item(), 4)
        (1.5, 0.0357)
    """

    squares: Tensor

    def __init__(self, ratio: float, momentum: float = 0.9) -> None:
        super().__init__()
        if not (0 < ratio < math.inf and 0 <= momentum < 1):
            raise ValueError(
                f"ratio={ratio}, momentum={momentum}: give a ratio above 0 and a momentum from 0 to below 1"
            )
        self.ratio, self.momentum = ratio, momentum
        self.register_buffer("squares", torch.zeros(2, dtype=torch.float64))  # G, H

    @property
    def scale(self) -> Tensor:
        """s as of the last step, a scalar on the device; 1 as long as no gradient of `other` was seen."""
        return self._scale(self.squares)

    def forward(self, restored: Tensor, reference: Tensor, other: Tensor) -> Tensor:
        """The scalar to minimise, differentiable by `restored` alone.

        The graphs from `reference` and `other` to `restored` are gone through here. They may have a part in common;
        that of `other` is freed.

        Args:
            restored: any shape; where it needs a gradient, both losses must be functions of it.
            reference, other: scalars; with several ranks each rank's part, both scaled alike.
        """
        if not (torch.is_grad_enabled() and restored.requires_grad):
            return reference + self.scale.to(other.dtype) * other
        with torch.autocast(restored.device.type, enabled=False):
            # `other` may share a part of the graph of `reference`.
            (g,) = torch.autograd.grad(_LOSS_SCALE * reference, restored, retain_graph=True)
            (h,) = torch.autograd.grad(_LOSS_SCALE * other, restored)
            lengths = [torch.linalg.vector_norm(gradient, dtype=torch.float64) / _LOSS_SCALE for gradient in (g, h)]
            new = sum_over_workers(torch.stack(lengths).square())
            before = self.squares.to(new.device)
            squares = torch.lerp(new, before, self.momentum)
            # A step whose gradient is not finite ends the training elsewhere; it must not remain in the means.
            counts = new.isfinite().all() & (new[1] > 0)
            squares = torch.where(counts, squares, before)
            if self.training:
                self.squares = squares
            scale = self._scale(squares)
            value = reference.detach() + scale.to(other.dtype) * other.detach()
            dtype = torch.promote_types(g.dtype, torch.float32)
            total = torch.addcmul(g.to(dtype), h.to(dtype), scale.to(dtype)).div_(_LOSS_SCALE)
            return with_gradient(value, restored, total)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_dtype(fn), recurse)

    def _scale(self, squares: Tensor) -> Tensor:
        of_reference, of_other = squares
        return torch.where(of_other > 0, self.ratio * (of_reference / of_other).sqrt(), torch.ones_like(of_other))
