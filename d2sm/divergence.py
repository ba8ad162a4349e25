"""Eq. (1) and (2) over kernel matrices of which one step changes only a few rows and columns.

    s_ij = Q_i . Q_j                        cosine of two unit rows
    k_ij = (s_ij + 1) / 2                   kernel, in [0, 1]; clamped at EPS so that its logarithm exists
    k_ij = exp((s_ij - 1) / tau)            the other kernel, with a temperature tau; clamped at FLOOR. P and Q are
                                            those of exp(s_ij / tau): a constant factor cancels
    S_j  = sum_{i != j} k_ij                column sum;  P_ij = k_ij / S_j is eq. (2)
    L    = sum_j D(P_.j || Q_.j)            eq. (1), P of the restored rows (kernels kx), Q of the clean rows (ky)

Shapes: n samples stored, N new samples of this rank, M of all ranks. The kernel matrices (n, n) are symmetric, so the
sum of a row is that of its column. `k` holds kx and ky between this rank's new samples and all samples: (2, N, n).

For KL and inverse KL the divergence of a column needs three sums only,

    KL(P||Q)_j = sum_i P_ij (log kx_ij - log S_j - log ky_ij + log T_j)  =  C_j / S_j - log S_j + log T_j,
    S_j = sum_i kx_ij,   T_j = sum_i ky_ij,   C_j = sum_i kx_ij (log kx_ij - log ky_ij),

to which every pair (i, j) contributes independently: subtract the pairs of the samples that leave, add those of the
samples that enter. For Jensen-Shannon, P and Q stand under one logarithm and the sums do not separate: `JSDivergence`
keeps both matrices.

Gradient: D depends on kx_ij through P_.j, hence dL/dkx_ij = (g_ij - sum_i P_ij g_ij) / S_j with g_ij = dD/dP_ij. A
cosine occurs in two columns, hence dL/ds_ij = (dL/dkx_ij + dL/dkx_ji) dk_ij/ds_ij; dk/ds is 1/2 for k = (s + 1) / 2,
and k / tau for k = exp((s - 1) / tau).

Sums and logarithms are taken in float64: when restored and clean are close, C_j / S_j and log S_j - log T_j cancel.
That is about 120 operations a pair of new and stored sample, a small part of a step also on cards that compute float64
at 1/64 of float32's rate; logarithms in float32 lose exactness (tests/benchmarks/README.md, "On a GPU").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from d2sm.compiling import Compiling
from d2sm.distributed import gather_rows, sum_over_workers

Divergence = Literal["kl", "inverse_kl", "jsd"]
Kernel = Literal["cosine", "exp"]
EPS = torch.finfo(torch.float32).eps  # kernel of two opposite rows
# Of exp((s - 1) / tau): what is smaller than this part of the largest adds nothing to a column, and sums that are
# updated by additions and subtractions in float64 stay exact to 4 digits even if they hold nothing else.
FLOOR = 1e-12
LOWEST_TEMPERATURE = 0.05  # there cosines below -.38 are clamped
# More than what float32 cosines of the same rows differ by in other orders of summation: 1e-5 for rows of 131,072.
ROUNDING = 1e-4
_TINY = torch.finfo(torch.float64).tiny
_FEW, _LONG, _PIECES = 64, 32768, 32  # measured on an H100: tests/benchmarks/README.md, "On a GPU"


def cosines(rows: Tensor, queues: Tensor) -> Tensor:
    """Unit rows times every stored row, restored and clean: (2, N, D), (2, n, D) -> (2, N, n)."""
    if queues.dtype == rows.dtype:
        return _cosines(queues, rows).mT
    # A queue stored in half precision is converted first: products in 8 bits of mantissa would be too coarse.
    return torch.cat([_cosines(chunk.to(rows.dtype), rows) for chunk in queues.split(512, dim=1)], dim=1).mT


def kernel(cosines: Tensor, temperature: float | None = None) -> Tensor:
    """k of cosines, in float64, at least its `floor`: (s + 1) / 2, or exp((s - 1) / temperature)."""
    if temperature is None:
        return cosines.double().add_(1).div_(2).clamp_(min=EPS)
    return cosines.double().sub_(1).div_(temperature).exp_().clamp_(min=FLOOR)


def floor(temperature: float | None) -> float:
    """The value at which the kernel is clamped, which has no gradient."""
    return EPS if temperature is None else FLOOR


def pieces(device: torch.device, count: int, length: int) -> int:
    """In how many pieces of D the products of `count` rows of `length` D with a queue are computed and summed.

    A GPU's library gives a product with few rows to few multiprocessors, however long the rows are. In pieces of D it
    uses all of them, and its float32 sums are shorter and so more exact. A CPU gains nothing by it.
    """
    if device.type == "cpu" or count > _FEW or length < _LONG:
        return 1
    return math.gcd(_PIECES, length)


def _cosines(queues: Tensor, rows: Tensor) -> Tensor:
    """(2, n, D), (2, N, D) -> (2, n, N)."""
    parts = pieces(rows.device, rows.shape[1], rows.shape[2])
    if parts == 1:
        return queues @ rows.mT  # faster on a CPU than rows @ queues.mT: the tall factor comes first
    return torch.stack([_in_pieces(queue, row, parts) for queue, row in zip(queues, rows, strict=True)])


def _in_pieces(queue: Tensor, rows: Tensor, parts: int) -> Tensor:
    """(n, D), (N, D) -> (n, N), the sum of `parts` products of (n, D / parts) with (D / parts, N). Copies no row."""
    by_piece = queue.unflatten(1, (parts, -1)).transpose(0, 1)
    return torch.bmm(by_piece, rows.unflatten(1, (parts, -1)).permute(1, 2, 0)).sum(0)


class KLDivergence(nn.Module):
    """KL(P || Q), or KL(Q || P) if inverse: O(N n) a step beside the kernels `k`, and O(n) memory.

    Rounding errors do not accumulate: a column is summed afresh when its sample enters and is dropped when the sample
    leaves, so no sum takes more than q additions and q subtractions, in float64.
    """

    def __init__(self, queue_size: int, *, inverse: bool, temperature: float | None = None) -> None:
        super().__init__()
        self.inverse, self.temperature = inverse, temperature
        self.register_buffer("sums", torch.zeros(3, queue_size, dtype=torch.float64))  # S_j, T_j, C_j
        self.sums: Tensor
        self.compiling = Compiling()
        self._steady = False  # whether the last update was of full queues, and replaced as many samples as entered
        self._log_ratio: Tensor | None = None  # of the last update's new samples, until `gradient` has used it

    def update(self, k: Tensor, k_leaving: Tensor, new: Tensor, own: Tensor) -> None:
        """Replace the samples that leave by those that enter.

        Args:
            k: (2, N, n) kernels kx, ky of this rank's new samples, 0 where a sample meets itself.
            k_leaving: (2, at most N, n) kernels of the samples that they replace.
            new, own: (M,), (N,) indices of all ranks' and of this rank's new samples in the queue.
        """
        self._steady = k.shape == k_leaving.shape and k.shape[2] == self.sums.shape[1]
        change, self._log_ratio = self.compiling(_change, k, k_leaving, new, own, self.inverse, steady=self._steady)
        self.sums = self.sums.to(change.device)
        self.sums.index_fill_(1, new, 0)
        self.sums[:, : change.shape[1]] += sum_over_workers(change)

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile the arithmetic on kernels of full queues; `options` are those of torch.compile."""
        self.compiling.compile(**options)

    def value(self, n: int) -> Tensor:
        """L over the n columns: a float64 scalar."""
        s, t, c = self.sums[:, :n]
        s, t = (t, s) if self.inverse else (s, t)
        return (c / s - s.log() + t.log()).clamp(min=0).sum()

    def gradient(self, k: Tensor, own: Tensor) -> Tensor:
        """dL/ds between the new samples of the last update, whose kernels are `k`, and all samples: (N, n) float64."""
        sums, log_ratio, self._log_ratio = self.sums[:, : k.shape[2]], self._log_ratio, None
        return self.compiling(_gradient, k, log_ratio, sums, own, self.inverse, self.temperature, steady=self._steady)

    def agrees(self, k: Tensor, columns: Tensor) -> bool:
        """Whether the sums of some columns are those of their kernels `k`, (2, J, n), up to rounding."""
        log_ratio, rounding = _log_ratio(k), _rounding(k, self.temperature)
        (of_first, of_second), log_quotient = (rounding.flip(0), -log_ratio) if self.inverse else (rounding, log_ratio)
        of_c = of_first * (log_quotient.abs() + 1) + of_second * log_quotient.exp()
        wanted, tolerance = _contributions(k, log_ratio, self.inverse).sum(2), torch.cat([rounding, of_c[None]]).sum(2)
        return bool(((self.sums.to(k.device)[:, columns] - wanted).abs() <= tolerance).all())

    def replace(self, k: Tensor, columns: Tensor) -> None:
        """Set the sums of some columns to those of their kernels `k`, (2, J, n)."""
        self.sums = self.sums.to(k.device)
        self.sums[:, columns] = _contributions(k, _log_ratio(k), self.inverse).sum(2)

    @contextmanager
    def unchanged(self, new: Tensor) -> Iterator[None]:
        """Undo the updates made within the block."""
        sums = self.sums
        self.sums = sums.clone()
        try:
            yield
        finally:
            self.sums = sums


def _change(k: Tensor, k_leaving: Tensor, new: Tensor, own: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """What this rank adds to S, T and C of all columns, (3, n), and log kx - log ky of its new samples, (N, n).

    Arguments as in `KLDivergence.update`.
    """
    log_ratio = _log_ratio(k)
    entering = _contributions(k, log_ratio, inverse)  # (3, N, n)
    change = entering.sum(1) - _contributions(k_leaving, _log_ratio(k_leaving), inverse).sum(1)
    # Columns of replaced samples are not updated incrementally: zero them, then let the rank that owns the new sample
    # write the full sum.
    change.index_fill_(1, new, 0)  # an assigned number would be copied from the host, which then waits
    change[:, own] = entering.sum(2)
    return change, log_ratio


def _contributions(k: Tensor, log_ratio: Tensor, inverse: bool) -> Tensor:
    """What each pair adds to S, T and C: (3, N, n)."""
    c = -k[1] * log_ratio if inverse else k[0] * log_ratio
    return torch.cat([k, c[None]])


def _gradient(
    k: Tensor, log_ratio: Tensor, sums: Tensor, own: Tensor, inverse: bool, temperature: float | None
) -> Tensor:
    """dL/ds between this rank's new samples and all samples, from their kernels and the sums (3, n): (N, n).

    Every pair stands in two columns, i and j. Numbers of a column are divided once, not once a pair.
    """
    kx, ky = k
    s, t, c = sums
    by_s = 1 / s
    both = by_s + by_s[own, None]
    if inverse:  # g = -Q/P, whose mean under P is -1
        by_t = 1 / t
        by_kernel = both - ky / kx.clamp(min=floor(temperature)) * (by_t + by_t[own, None])
    else:  # g = log(P/Q) + 1, of which what depends on the column alone cancels
        mean = c * by_s.square()
        by_kernel = torch.addcmul(-mean - mean[own, None], log_ratio, both)
    return _by_cosine(kx, by_kernel, temperature)


def _rounding(k: Tensor, temperature: float | None) -> Tensor:
    """How far kernels may be apart that were computed from the same rows, in other orders of summation."""
    return torch.full_like(k, ROUNDING) if temperature is None else k * (ROUNDING / temperature)


def _by_cosine(k: Tensor, by_kernel: Tensor, temperature: float | None) -> Tensor:
    """dL/ds from dL/dk: 0 where the kernel is clamped, and on the diagonal, where it is 0."""
    chained = by_kernel / 2 if temperature is None else by_kernel * k / temperature
    return torch.where(k > floor(temperature), chained, 0)


class JSDivergence(nn.Module):
    """Jensen-Shannon: JSD(P, Q) = (KL(P||M) + KL(Q||M)) / 2, M = (P + Q) / 2.

    A column sum enters every logarithm of its column, so a step costs O(n^2) additions and logarithms beside the O(N n
    D) products, on every rank, and both kernel matrices are stored: 2 q^2 numbers. The n^2 D products of recomputing
    them are saved.
    """

    CHUNK = 256  # columns processed at once, to bound temporary memory

    def __init__(self, queue_size: int, *, temperature: float | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("kernels", torch.zeros(2, queue_size, queue_size, dtype=torch.float64))
        self.kernels: Tensor

    def compile(self, *_: Any, **__: Any) -> None:
        """Nothing is compiled: the sums over whole matrices are few large kernels."""

    def update(self, k: Tensor, k_leaving: Tensor, new: Tensor, own: Tensor) -> None:
        """Replace the samples that leave by those that enter (arguments as in `KLDivergence`)."""
        self.kernels = self.kernels.to(k.device)
        for matrix, own_rows in zip(self.kernels, k, strict=True):
            rows, _ = gather_rows(own_rows)  # (M, n)
            matrix[new, : rows.shape[1]] = rows
            matrix[: rows.shape[1], new] = rows.T

    def value(self, n: int) -> Tensor:
        """L over the n columns: a float64 scalar."""
        total = self.kernels.new_zeros(())
        for columns in torch.arange(n, device=total.device).split(self.CHUNK):
            p, q, _ = self._distributions(columns, n)
            log_m = _log((p + q) / 2)
            of_columns = (p * (_log(p) - log_m) + q * (_log(q) - log_m)).sum(1) / 2
            total += of_columns.clamp(min=0).sum()
        return total

    def gradient(self, k: Tensor, own: Tensor) -> Tensor:
        """dL/ds between this rank's new samples and all samples: (N, n) float64."""
        n = k.shape[2]
        chunks = torch.arange(n, device=k.device).split(self.CHUNK)
        by_column = torch.cat([self._kernel_gradient(columns, n)[:, own] for columns in chunks]).T
        by_row = self._kernel_gradient(own, n)
        return _by_cosine(k[0], by_column + by_row, self.temperature)

    def agrees(self, k: Tensor, columns: Tensor) -> bool:
        """Whether some stored columns are their kernels `k`, (2, J, n), up to rounding."""
        stored = self.kernels.to(k.device)[:, columns, : k.shape[2]]
        return bool(((stored - k).abs() <= _rounding(k, self.temperature)).all())

    def replace(self, k: Tensor, columns: Tensor) -> None:
        """Store some columns, whose kernels are `k`, (2, J, n)."""
        self.kernels = self.kernels.to(k.device)
        self.kernels[:, columns, : k.shape[2]] = k

    @contextmanager
    def unchanged(self, new: Tensor) -> Iterator[None]:
        """Undo the updates made within the block; `new` are the indices that they write to."""
        kernels, new = self.kernels, new.to(self.kernels.device)
        rows, columns = kernels[:, new], kernels[:, :, new]
        try:
            yield
        finally:
            if self.kernels is kernels:  # else the block moved them to another device, and wrote to a copy
                kernels[:, new], kernels[:, :, new] = rows, columns
            self.kernels = kernels

    def _kernel_gradient(self, columns: Tensor, n: int) -> Tensor:
        """dL/dkx_ij for some columns j, one a row: (J, n). g = log(P/M) / 2."""
        p, q, s = self._distributions(columns, n)
        g = (_log(p) - _log((p + q) / 2)) / 2
        return (g - (p * g).sum(1, keepdim=True)) / s

    def _distributions(self, columns: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """P and Q of some columns j, one a row, and S: (J, n), (J, n), (J, 1)."""
        kx, ky = self.kernels[:, columns, :n]
        s = kx.sum(1, keepdim=True)
        return kx / s, ky / ky.sum(1, keepdim=True), s


def _log(values: Tensor) -> Tensor:
    """Logarithm, finite also on the diagonal: kernels are 0 there, and 0 times a finite number adds nothing."""
    return values.clamp(min=_TINY).log()


def _log_ratio(k: Tensor) -> Tensor:
    """log kx - log ky of (2, N, n) kernels, as one logarithm: it costs more than the division."""
    kx, ky = k.clamp(min=_TINY)  # on the diagonal both kernels are 0
    return (kx / ky).log_()
