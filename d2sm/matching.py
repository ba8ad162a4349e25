"""StatisticsMatching: the D2SM divergence of feature rows, with its gradient, in time linear in the queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from d2sm.compiling import Compiling
from d2sm.distributed import gather_rows, row_counts, world_size
from d2sm.divergence import LOWEST_TEMPERATURE, Divergence, JSDivergence, Kernel, KLDivergence, cosines, kernel
from d2sm.feature_mean import FeatureMean
from d2sm.feature_queue import FeatureQueue
from d2sm.precision import keeping_dtype
from d2sm.precomputed import with_gradient

Reduction = Literal["mean", "sum"]
_COLUMNS_CHECKED = 8  # of a loaded state, the oldest among them
_COLUMNS_AT_ONCE = 256  # when all are computed anew, to bound temporary memory


class StatisticsMatching(nn.Module):
    """How far the restored samples' similarities to each other are from those of the clean samples.

        L = sum_j sum_{i != j} P_ij log(P_ij / Q_ij)                                         eq. (1)
        P_ij = k(Q^X_i, Q^X_j) / sum_{k != j} k(Q^X_k, Q^X_j),   Q_ij the same over Q^Y      eq. (2)
        k(a, b) = (cos(a, b) + 1) / 2, or exp(cos(a, b) / tau)                               cos(a, b) = a.b / (|a| |b|)

    over queues Q^X, Q^Y of the last `queue_size` samples *after* the new ones entered, oldest out first. Gradient flows
    through the new samples alone, in their similarities to each other and to the history (eq. (3)). Range: L >= 0. With
    two samples or fewer it is 0, since a column then holds a single entry, which is 1.

    Complexity: with N new samples of D numbers and n <= q stored ones, a step takes O(N n D) time, in 4 products of
    N x D with D x n (samples that enter and leave, restored and clean) and one more for the gradient, and O(N n) memory
    beside the queues. "jsd" takes O(n^2) more of both. `divergence.py` derives this.

    Distributed: in a process group the queues of every rank hold the samples of all ranks, and each rank computes the
    similarities of its own N samples. A rank sends its rows (2 N D numbers), their shapes (24 bytes) and the changes of
    the column sums (3 n float64; for "jsd" the kernels of its new samples instead, 2 N n float64); with `center` also
    the sum and the number of its clean features (D + 1 float64). The value is the same on every rank and equals that of
    one process with the whole batch. DistributedDataParallel *averages* gradients over ranks; therefore the gradient
    returned here is the true one of this rank's samples times the number of ranks, and the averaged gradient of the
    model is that of one process. The group is the default one. Every rank makes every call, in eval mode too, with at
    least one sample.

    In eval mode the value is the same as in training mode, but the queues stay as they are; this copies only the rows
    that would have been overwritten, never the queues.

    Where a sample is not finite, the value and the gradient of its step are NaN. It enters the queues as a zero row,
    whose cosine with every sample is 0, so later steps are finite.

    State: the queues, the column sums and the mean keep their precision in `.half()`, `.double()` and `.to(dtype)`. A
    saved state may be loaded with another kernel, temperature or direction of KL, and with another `queue_dtype`: the
    column sums are then computed anew from the queues, in O(n^2 D). Otherwise loading takes O(n D), and the next steps
    are bit for bit those that would have followed.

    Args:
        queue_size: q, samples stored; at least those of one step over all ranks.
        divergence: "kl" (restored against clean), "inverse_kl" (clean against restored) or "jsd".
        kernel: "cosine", the paper's, or "exp". With "cosine" nearly all columns of P are nearly uniform; "exp" with a
            low temperature says more about who resembles whom.
        temperature: tau of "exp", from 0.05 on.
        center: subtract the mean of the clean features from all features first (`FeatureMean`).
        reduction: "mean" divides eq. (1) by the number of stored samples; "sum" is eq. (1).
        queue_dtype: precision of the stored rows, such as torch.bfloat16; None: that of the computation, or of the
            state that is loaded.
        gather_dtype: precision in which ranks send rows to each other; None: that of the computation.

    Example:
        >>> matching = StatisticsMatching(queue_size=8)
        >>> restored = torch.tensor([[1., 0.], [0., 1.], [1., 1.]], requires_grad=True)
        >>> value = matching(restored, torch.tensor([[1., 0.], [0.5, 1.], [1., 1.]]))
        >>> value.backward()
        >>> f"{value.item():.4f}"
        '0.0084'

    Source: "Deep Semantic Statistics Matching (D2SM) Denoising Network", ECCV 2022, arXiv 2207.09302.
    """

    def __init__(
        self,
        queue_size: int,
        divergence: Divergence = "kl",
        *,
        kernel: Kernel = "cosine",
        temperature: float = 0.1,
        center: bool = False,
        reduction: Reduction = "mean",
        queue_dtype: torch.dtype | None = None,
        gather_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_choice("divergence", divergence, get_args(Divergence))
        _check_choice("reduction", reduction, get_args(Reduction))
        _check_choice("kernel", kernel, get_args(Kernel))
        if not (is_number(temperature) and temperature >= LOWEST_TEMPERATURE):
            raise ValueError(f"temperature={temperature!r}: must be a number of at least {LOWEST_TEMPERATURE}")
        self.temperature = temperature if kernel == "exp" else None
        check_integer("queue_size", queue_size)
        if queue_size < 2:
            raise ValueError(f"queue_size={queue_size}: at least 2, since samples are compared with each other")
        for name, dtype in (("queue_dtype", queue_dtype), ("gather_dtype", gather_dtype)):
            if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise ValueError(
                    f"{name}={dtype!r}: give a floating-point type of torch, such as torch.bfloat16, or None"
                )
        self.queue_size, self.reduction, self.gather_dtype = queue_size, reduction, gather_dtype
        self.memory = FeatureQueue(queue_size, queue_dtype)  # the name is part of saved states
        self.sums_of = {"divergence": divergence, "temperature": self.temperature}
        self.memory.sums_of = self.sums_of
        self.divergence: KLDivergence | JSDivergence
        if divergence == "jsd":
            self.divergence = JSDivergence(queue_size, temperature=self.temperature)
        else:
            inverse = divergence == "inverse_kl"
            self.divergence = KLDivergence(queue_size, inverse=inverse, temperature=self.temperature)
        self.center = FeatureMean(queue_size) if center else None
        self.compiling = Compiling()
        self.register_load_state_dict_post_hook(_mend_sums)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Add the new samples to the queues and compare.

        Args:
            restored, clean: (N, D) features of the same N images or patches, in any floating-point precision.

        Returns:
            A scalar >= 0 in float32 (float64 for float64 features), differentiable by `restored`. The gradient is
            rounded to the type of `restored` in the backward pass: float16 needs a loss scale (`torch.amp.GradScaler`).
            It has no derivative of its own, and raises a RuntimeError when it is differentiated (`create_graph=True`).

        Raises:
            ValueError: unequal or wrong shapes or devices, or more samples in a step than the queues store.
        """
        _check_rows(restored, clean)
        needs_gradient = torch.is_grad_enabled() and restored.requires_grad
        # What is remembered must not be inference tensors, into which a step outside inference mode cannot write.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(restored.device.type, enabled=False):
            x, y = restored.detach(), clean.detach()
            counts = self._counts(x, y)  # checked before anything is remembered
            if self.center is not None:
                with nullcontext() if self.training else self.center.unchanged():
                    x, y = self.center.centred(x, y)
            value, gradient = self._step(x, y, counts, needs_gradient)
        return value if gradient is None else with_gradient(value, restored, gradient)

    def _counts(self, restored: Tensor, clean: Tensor) -> list[int]:
        """How many samples each rank brings, which all must fit into the queues."""
        dtype = self.gather_dtype or torch.promote_types(
            torch.promote_types(restored.dtype, clean.dtype), torch.float32
        )
        counts = row_counts(len(restored), 2 * restored.shape[1], dtype)  # restored and clean are sent as one row
        if sum(counts) > self.queue_size:
            raise ValueError(
                f"queue_size={self.queue_size}: smaller than the {sum(counts)} samples this step brings; raise it, or "
                "take smaller batches or larger patches"
            )
        self.memory.check(restored)
        return counts

    def _step(
        self, restored: Tensor, clean: Tensor, counts: list[int], needs_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The value and its gradient by `restored`, which is computed at once because the queues move on."""
        rows, inverse_norm = self.compiling(_unit, restored, clean)  # (2, N, D)
        count, queue = rows.shape[1], self.memory

        # The rows of all ranks, (2, M, D), among them this rank's.
        sent, own_part = gather_rows(rows.transpose(0, 1).flatten(1).to(self.gather_dtype or rows.dtype), counts)
        # A sample that is not finite makes the value and the gradient of its step NaN, on every rank. In the queues it
        # is a zero row, so that those of the next steps are finite. `_unit` has made NaN of what is not finite in it.
        # A mask instead of the product takes a CPU 4 times as long.
        nan_or_0 = sent.sum(1, keepdim=True) * 0
        sent.mul_(nan_or_0 + 1).nan_to_num_(0)
        nan_or_0 = nan_or_0.sum().to(rows.dtype)
        all_rows = sent.to(rows.dtype).unflatten(1, (2, -1)).transpose(0, 1)

        with nullcontext() if self.training else self._unchanged(len(sent)):
            # (3): they enter the queues, the oldest leave.
            queue.allocate(all_rows)
            new = queue.next_indices(len(sent))
            own = new[own_part]
            entering = all_rows[:, own_part].to(queue.rings.dtype)
            leaving = queue.rings[:, queue.replaced(new, own_part)]
            queue.write(all_rows)

            # Kernels of this rank's rows that enter and leave, in one product: reading the queue dominates its cost.
            compared = torch.cat([entering, leaving], dim=1).to(rows.dtype)
            found, steady = cosines(compared, queue.filled), leaving.shape == rows.shape and queue.is_full
            k, k_leaving = self.compiling(_kernels, found, own, count, self.temperature, steady=steady)

            # (2), (1): the column sums and the value.
            self.divergence.update(k, k_leaving, new, own)
            x, n = rows[0], queue.fill
            if n <= 2:  # a column of P and of Q holds a single entry, 1; rounding must not pass for a gradient
                return nan_or_0, torch.zeros_like(x) + nan_or_0
            scale = 1 / n if self.reduction == "mean" else 1.0
            value = (self.divergence.value(n) * scale).to(x.dtype) + nan_or_0
            if not needs_gradient:
                return value, None

            by_cosine = (self.divergence.gradient(k, own) * (scale * world_size())).to(x.dtype)
            by_unit = _product(by_cosine, queue.restored)
            return value, self.compiling(_through_norm, by_unit, x, inverse_norm[0] + nan_or_0)

    def kernels(self, columns: Tensor) -> Tensor:
        """kx and ky between some stored samples and all: (2, J, n) float64, 0 where a sample meets itself."""
        queue = self.memory.filled
        rows = queue[:, columns].to(torch.promote_types(queue.dtype, torch.float32))
        k, _ = _kernels(cosines(rows, queue), columns, len(columns), self.temperature)
        return k

    def allocate(self, rows: Tensor) -> None:
        """Give queues without samples their shape, from samples like `rows` (N, D), which do not enter.

        Raises:
            ValueError: the queues have the shape of others already.
        """
        with torch.inference_mode(False), torch.no_grad():
            self.memory.check(rows)
            self.memory.allocate(rows.to(torch.promote_types(rows.dtype, torch.float32)).expand(2, -1, -1))
            if self.center is not None:
                self.center.allocate(rows)

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile the arithmetic between the products, in place; `options` are those of torch.compile.

        While the queues are being filled their shapes change at every step, so all that depends on them is compiled for
        full queues alone. For "jsd" its sums over whole matrices are not compiled.
        """
        self.compiling.compile(**options)
        self.divergence.compile(**options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_dtype(fn), recurse)

    @contextmanager
    def _unchanged(self, count: int) -> Iterator[None]:
        """Restore the state at the end of the block, in which `count` samples enter."""
        with self.memory.unchanged(count), self.divergence.unchanged(self.memory.next_indices(count)):
            yield


@torch.no_grad()
def _mend_sums(matching: StatisticsMatching, _: Any) -> None:
    """Compute the column sums of a loaded state from its queues, unless they are this divergence's and agree with them.

    Those of rows that were stored in another precision do not agree, nor do most of another kernel, temperature or
    direction, which earlier versions did not write down. Sums go wrong by being loaded so, and then for the samples
    that are the oldest later on: a few columns tell.
    """
    queue, divergence = matching.memory, matching.divergence
    others = queue.sums_of not in (None, matching.sums_of)
    queue.sums_of = matching.sums_of
    if queue.fill < 2 or queue.rings.is_meta:
        return
    columns = queue.oldest_first()
    few = columns[:: -(-queue.fill // _COLUMNS_CHECKED)]
    if others or not divergence.agrees(matching.kernels(few), few):
        for chunk in columns.split(_COLUMNS_AT_ONCE):
            divergence.replace(matching.kernels(chunk), chunk)


def _unit(restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows in float32 or wider, and inverse norms; a zero row stays zero and gets a zero gradient."""
    rows = torch.stack([restored, clean])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norm = rows.norm(dim=-1, keepdim=True)
    inverse = torch.where(norm > torch.finfo(rows.dtype).tiny, 1 / norm, 0)
    return rows * inverse, inverse


def _kernels(found: Tensor, own: Tensor, count: int, temperature: float | None) -> tuple[Tensor, Tensor]:
    """Of cosines: the kernels of the `count` rows that enter, 0 where one meets itself, and of those that leave."""
    k, k_leaving = kernel(found, temperature).tensor_split([count], dim=1)
    k.scatter_(2, own.expand(2, -1)[..., None], 0)
    return k, k_leaving


def _through_norm(by_unit: Tensor, x: Tensor, inverse_norm: Tensor) -> Tensor:
    """dL/dx through the normalisation: the part of the gradient that lies along the row does not count."""
    along = torch.linalg.vecdot(x, by_unit)[:, None]
    return torch.addcmul(by_unit, x, along, value=-1) * inverse_norm


def _product(by_cosine: Tensor, queue: Tensor) -> Tensor:
    """(N, n) @ (n, D), in chunks if the queue is stored in another precision."""
    if queue.dtype == by_cosine.dtype:
        # In 8 blocks of D where 8 divides it: as one product, MKL distributes so few rows badly over the cores.
        blocks = math.gcd(8, queue.shape[1])
        products = torch.bmm(by_cosine.expand(blocks, -1, -1), queue.unflatten(1, (blocks, -1)).transpose(0, 1))
        return products.transpose(0, 1).flatten(1)
    chunks = zip(by_cosine.split(512, dim=1), queue.split(512), strict=True)
    return torch.stack([a @ b.to(a.dtype) for a, b in chunks]).sum(0)


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


def is_number(value: object) -> bool:
    """Whether it is a real number, of Python or of NumPy."""
    return isinstance(value, Real)


def check_integer(name: str, value: object) -> None:
    """Refuse what is no integer, with one line instead of an error from within torch."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name}={value!r}: give an integer")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
