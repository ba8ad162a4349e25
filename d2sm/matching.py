"""StatisticsMatching: the D2SM divergence on feature rows, with gradient, linear in the queue."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from d2sm.distributed import gather_rows, world_size
from d2sm.divergence import Divergence, JSDivergence, KLDivergence, kernel
from d2sm.feature_queue import FeatureQueue

Reduction = Literal["mean", "sum"]


class StatisticsMatching(nn.Module):
    """How far the restored samples' similarities to each other are from those of the clean samples.

        L = sum_j sum_{i != j} P_ij log(P_ij / Q_ij)                                         eq. (1)
        P_ij = k(Q^X_i, Q^X_j) / sum_{k != j} k(Q^X_k, Q^X_j),   Q_ij the same over Q^Y      eq. (2)
        k(a, b) = (a.b / (|a| |b|) + 1) / 2

    over queues Q^X, Q^Y of the last `queue_size` samples *after* the new ones entered, oldest out first. Gradient flows
    through the new samples alone, in their similarities to each other and to the history (eq. (3)). With two samples
    or fewer it is 0: a column then holds a single entry, which is 1.

    Cost: with N new samples of D numbers and n <= q remembered, a step does O(N n D) work: 4 products of N x D with
    D x n (entering and leaving, restored and clean) and one more for the gradient, and needs O(N n) memory beside the
    queues. See `divergence.py` for why, for rounding, and for `"jsd"`, which needs O(n^2) on top.

    Workers: in a process group every worker's queues hold every worker's samples. Each computes the similarities of
    its own N rows. What travels: the rows (2 N D numbers), their shapes (24 bytes), and the changes of the column sums
    (3 n float64); for "jsd" the kernels of the new rows instead (2 N n float64). The value is the same everywhere and
    equals that of one process with the whole batch. DDP *averages* gradients over workers, so the gradient given here
    is the true one of this worker's rows times the number of workers: after averaging, the model's gradient is the
    one-process gradient.

    In eval mode the value is computed as if the samples had entered, and nothing is remembered.

    Args:
        queue_size: q, samples remembered; at least those of one step over all workers.
        divergence: "kl" (restored against clean), "inverse_kl" (clean against restored) or "jsd".
        reduction: "mean" divides eq. (1) by the samples present; "sum" is eq. (1).
        queue_dtype: precision of the stored rows, such as torch.bfloat16; None: that of the computation.
        gather_dtype: precision in which workers send rows to each other; None: that of the computation.

    Example:
        >>> matching = StatisticsMatching(queue_size=8)
        >>> restored = torch.tensor([[1., 0.], [0., 1.], [1., 1.]], requires_grad=True)
        >>> value = matching(restored=restored, clean=torch.tensor([[1., 0.], [0.5, 1.], [1., 1.]]))
        >>> value.backward()
        >>> f"{value.item():.4f}"
        '0.0084'

    Source: "Deep Semantic Statistics Matching (D2SM) Denoising Network", arXiv 2207.09302.
    """

    def __init__(
        self,
        queue_size: int,
        divergence: Divergence = "kl",
        *,
        reduction: Reduction = "mean",
        queue_dtype: torch.dtype | None = None,
        gather_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_choice("divergence", divergence, get_args(Divergence))
        _check_choice("reduction", reduction, get_args(Reduction))
        if queue_size < 2:
            raise ValueError(f"queue_size={queue_size}: at least 2, since samples are compared with each other")
        self.queue_size, self.reduction, self.gather_dtype = queue_size, reduction, gather_dtype
        self.memory = FeatureQueue(queue_size, queue_dtype)
        self.divergence: KLDivergence | JSDivergence = (
            JSDivergence(queue_size)
            if divergence == "jsd"
            else KLDivergence(queue_size, inverse=divergence == "inverse_kl")
        )

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Let new samples enter and compare.

        Args:
            restored, clean: (N, D) features of the same N images or patches, in any floating-point precision.

        Returns:
            A scalar >= 0, float32 (float64 for float64 features), 0 while fewer than two samples are present.

        Raises:
            ValueError: on unequal or wrong shapes, devices, or more samples in a step than the queues hold.
        """
        _check_rows(restored, clean)
        if not self.training:
            return copy.deepcopy(self).train()(restored=restored, clean=clean)
        wanted = torch.is_grad_enabled() and restored.requires_grad
        with torch.no_grad(), torch.autocast(restored.device.type, enabled=False):
            value, gradient = self._step(restored.detach(), clean.detach(), with_gradient=wanted)
        return _WithGradient.apply(restored, value, gradient) if wanted else value

    def _step(self, restored: Tensor, clean: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The loss, and its gradient by the restored features, computed here since the queues move on."""
        pairs, inverse_norm = _unit(torch.stack([restored, clean]))
        own, k = self._enter(pairs)
        n, x = self.memory.fill, pairs[0]
        scale = 1 / n if self.reduction == "mean" else 1.0
        if n < 2:  # nobody to compare with
            return x.new_zeros(()), torch.zeros_like(restored)
        value = (self.divergence.value(n) * scale).to(x.dtype)
        if not with_gradient:
            return value, None
        slope = (self.divergence.slope(k, own) * (scale * world_size())).to(x.dtype)
        by_unit = _product(slope, self.memory.restored)
        # Through the normalisation: only the part of the gradient across the row changes its direction.
        along = torch.linalg.vecdot(x, by_unit)[:, None]
        by_row = torch.addcmul(by_unit, x, along, value=-1) * inverse_norm[0]
        return value, by_row.to(restored.dtype)

    def _enter(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Let every worker's rows enter; give this worker's slots and kernels: (N,), (2, N, n)."""
        count = pairs.shape[1]
        everyone, mine = self._gather(pairs)
        memory = self.memory
        memory.allocate(everyone)
        new = memory.slots(everyone.shape[1])
        own = new[mine]
        entering, leaving = everyone[:, mine].to(memory.rings.dtype), memory.rings[:, memory.leaving(new, mine)]
        memory.write(everyone)
        # One product for entering and leaving rows: each reads the whole queue, which is what it costs.
        rows = torch.cat([entering, leaving], dim=1).to(pairs.dtype)
        k, gone = kernel(rows, memory.filled).tensor_split([count], dim=1)
        k[:, torch.arange(count, device=own.device), own] = 0  # i != j
        self.divergence.update(k, gone, new, own)
        return own, k

    def _gather(self, pairs: Tensor) -> tuple[Tensor, slice]:
        """Every worker's rows, (2, M, D), and where this worker's stand among them."""
        rows, mine = gather_rows(pairs.transpose(0, 1).flatten(1).to(self.gather_dtype or pairs.dtype))
        if len(rows) > self.queue_size:
            raise ValueError(
                f"queue_size={self.queue_size}: smaller than the {len(rows)} samples this step brings; raise it, or "
                "take smaller batches or larger patches"
            )
        return rows.to(pairs.dtype).unflatten(1, (2, -1)).transpose(0, 1), mine


class _WithGradient(torch.autograd.Function):
    """A value whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream.to(gradient.dtype) * gradient, None, None


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length one, in float32 at least, and their inverse lengths; zero rows stay zero, with zero gradient."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norm = rows.norm(dim=-1, keepdim=True)
    inverse = torch.where(norm > torch.finfo(rows.dtype).tiny, 1 / norm, 0)
    return rows * inverse, inverse


def _product(slope: Tensor, queue: Tensor) -> Tensor:
    """(N, n) @ (n, D), part by part when the queue is stored in another precision."""
    if queue.dtype == slope.dtype:
        # By 8 blocks of D where it divides: as one product, MKL shares so few rows badly among cores (1.4x the time).
        blocks = math.gcd(8, queue.shape[1])
        parts = torch.bmm(slope.expand(blocks, -1, -1), queue.unflatten(1, (blocks, -1)).transpose(0, 1))
        return parts.transpose(0, 1).flatten(1)
    pairs = zip(slope.split(512, dim=1), queue.split(512), strict=True)
    return torch.stack([s @ q.to(s.dtype) for s, q in pairs]).sum(0)


def _check_rows(restored: Tensor, clean: Tensor) -> None:
    for name, rows in (("restored", restored), ("clean", clean)):
        if rows.ndim != 2 or not rows.numel():
            raise ValueError(f"{name}: shape {tuple(rows.shape)}; give features as (N, D), at least one of each")
        if not rows.is_floating_point():
            raise ValueError(f"{name}: {rows.dtype}; give floating-point features")
    if restored.shape != clean.shape:
        raise ValueError(
            f"clean: shape {tuple(clean.shape)}, but restored has {tuple(restored.shape)}; give the features of the "
            "same images, in the same order"
        )
    if restored.device != clean.device:
        raise ValueError(f"clean: on {clean.device}, but restored is on {restored.device}; move one of them")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
