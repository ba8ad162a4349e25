"""Collectives: the only file that uses torch.distributed. Without a process group every function is the identity.

No gradient flows through them: `StatisticsMatching` computes the gradient of this rank's rows itself, so torch's
autograd collectives, whose names change between versions, are not needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

CAN_SET_TIMEOUT = hasattr(dist, "set_timeout")  # torch has it from 2.14 on
_PATIENCE = timedelta(days=1)  # of a rank that waits in a collective for the others


def wait_for_slow_ranks() -> None:
    """Let collectives of the default process group wait a day for a rank that writes a checkpoint or lacks data.

    All ranks call it once they have found each other, for which a timeout of minutes is right: an address that does not
    answer is then an error soon. A rank that dies later is noticed by its closed connection, or by what started it.
    The group of `row_counts` beside it waits as long; without this call both have the timeouts of torch. Versions of
    torch without `torch.distributed.set_timeout` keep the timeout that a group was made with (`CAN_SET_TIMEOUT`).
    """
    if world_size() == 1:
        return
    default = dist.group.WORLD
    _PATIENT.clear()
    _PATIENT.append(default)
    if CAN_SET_TIMEOUT:
        for group in (default, _CPU_GROUPS.get(default)):
            if group is not None:
                dist.set_timeout(_PATIENCE, group)


def world_size() -> int:
    """Number of ranks in the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def row_counts(count: int, length: int, dtype: torch.dtype) -> list[int]:
    """How many rows each rank has, in rank order, from how many this one has, of `length` numbers in `dtype`.

    All ranks do this in every step, since a collective that only some of them join hangs too. It runs on the CPU: the
    counts are needed by the host, and reading them from an accelerator would make it wait for all queued work.

    Raises:
        ValueError: ranks have rows of different length or precision: a collective on unequal shapes hangs or lies.
    """
    if world_size() == 1:
        return [count]
    own = torch.tensor([count, length, dtype.itemsize])
    received = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(received, own, group=_cpu_group())
    shapes = [tuple(shape.tolist()) for shape in received]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"features: workers bring rows of different length or precision ({', '.join(map(str, shapes))} as "
            "rows, length, bytes); use the same network, layer, crop size and precision on every worker"
        )
    return [shape[0] for shape in shapes]


def gather_rows(rows: Tensor, counts: list[int] | None = None) -> tuple[Tensor, slice]:
    """The rows of all ranks, in rank order, and the slice of this rank's.

    Args:
        rows: (N, D), without a graph; N may differ between ranks, D and the dtype may not.
        counts: N of every rank, where `row_counts` has given them already.

    Returns:
        (M, D), the same on every rank, and the slice of this rank's N rows. Each rank sends the largest N of all ranks
        times D numbers, and the shape of its rows.

    Raises:
        ValueError: ranks have rows of different length or precision.
    """
    if world_size() == 1:
        return rows, slice(0, len(rows))
    if counts is None:
        counts = row_counts(len(rows), rows.shape[1], rows.dtype)
    padded = pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
    received = [torch.empty_like(padded) for _ in counts]
    # As bytes: not every backend supports every floating-point type.
    dist.all_gather([other.view(torch.uint8) for other in received], padded.view(torch.uint8))
    start = sum(counts[: dist.get_rank()])
    gathered = torch.cat([other[:count] for other, count in zip(received, counts, strict=True)])
    return gathered, slice(start, start + len(rows))


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in place (the same shape on each)."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first rank, one collective each. Shapes and dtypes agree on all ranks."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all ranks, in one collective, as DistributedDataParallel does.

    The same parameters must have a gradient on every rank, all of one dtype.
    """
    ranks = world_size()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if ranks == 1 or not gradients:
        return
    means = sum_over_workers(torch.cat([gradient.flatten() for gradient in gradients])) / ranks
    for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class AnyRank:
    """Whether a flag is set on any rank: a logical OR that every rank learns in the same step, at 8 bytes a step.

    `start` begins the exchange and `result` ends it, so it overlaps with the work between them. It uses a process group
    of its own, on the CPU: it never waits for an accelerator, and does not change the order of the collectives of the
    gradients. All ranks must construct one, and call `start` and `result` equally often.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if world_size() > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: dist.Work | None = None

    def start(self, flag: bool) -> None:
        """Begin the exchange with this rank's flag."""
        self._flag.fill_(int(flag))
        if self._group is not None:
            self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> bool:
        """Whether the flag was set on any rank. Waits until all ranks have called `start`."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return bool(self._flag.item())


def _cpu_group() -> dist.ProcessGroup | None:
    """A group for CPU tensors: the default one (None) where its backend takes them, else a gloo group, created once."""
    default = dist.group.WORLD
    if "cpu" in dist.get_backend_config(default):
        return None
    if default not in _CPU_GROUPS:
        _CPU_GROUPS.clear()  # groups beside a default group that has been destroyed
        timeout = _PATIENCE if default in _PATIENT else None  # None: torch's
        _CPU_GROUPS[default] = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
    return _CPU_GROUPS[default]


_CPU_GROUPS: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}
_PATIENT: list[dist.ProcessGroup | None] = []  # the default group that `wait_for_slow_ranks` was called for
