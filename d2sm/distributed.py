"""The only file that knows torch.distributed. Without a process group every function is the identity.

Nothing here carries a gradient, so torch's autograd collectives, which change names between versions, are not needed:
the loss knows the gradient of its own rows in closed form (see `matching.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad


def world_size() -> int:
    """Workers in the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Every worker's rows, in rank order, and where this worker's stand among them.

    Args:
        rows: (N, D), without a graph; N may differ between workers, D and the dtype may not.

    Returns:
        (M, D), the same on every worker, and the slice of this worker's N rows. Sends N*D elements (the largest N of
        all workers) and one count.
    """
    workers = world_size()
    if workers == 1:
        return rows, slice(0, len(rows))
    counts = _counts(rows)
    largest = max(counts)
    mine = pad(rows, (0, 0, 0, largest - len(rows))).contiguous()
    everyone = [torch.empty_like(mine) for _ in counts]
    # As bytes: not every backend knows every floating-point type.
    dist.all_gather([part.view(torch.uint8) for part in everyone], mine.view(torch.uint8))
    start = sum(counts[: dist.get_rank()])
    gathered = torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])
    return gathered, slice(start, start + len(rows))


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of every worker's `values` (same shape everywhere)."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers, in one collective, as DistributedDataParallel does.

    The same parameters must have one on every worker, all of one dtype.
    """
    workers = world_size()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if workers == 1 or not gradients:
        return
    mean = sum_over_workers(torch.cat([gradient.flatten() for gradient in gradients])) / workers
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class AnyRank:
    """Whether a flag is set on any rank: a logical OR that every rank learns in the same step, at 8 bytes a step.

    `start` begins the exchange and `result` ends it, so it overlaps with the work between them. It uses a process group
    of its own, on the CPU: it never waits for an accelerator, and does not change the order of the collectives of the
    gradients. All ranks must construct one, and call `start` and `result` equally often.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
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


def _hosts() -> dist.ProcessGroup | None:
    """A group for tensors in the hosts' memory: the default one where it takes them, else one made beside it, once."""
    default = dist.group.WORLD
    if "cpu" in dist.get_backend_config(default):
        return None
    if default not in _BESIDE:
        _BESIDE.clear()  # of a default group that is no more
        _BESIDE[default] = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    return _BESIDE[default]


_BESIDE: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}


def _counts(rows: Tensor) -> list[int]:
    """How many rows each worker has; checks that they are as long, since a collective on unequal rows hangs or lies.

    Every step, since one that only some workers take part in hangs too. By the hosts: the numbers are needed there, and
    read from an accelerator they would make the host wait until it has done all that it was asked before.
    """
    mine = torch.tensor([*rows.shape, rows.element_size()])
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine, group=_hosts())
    shapes = [tuple(shape.tolist()) for shape in everyone]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"features: workers bring rows of different length or precision ({', '.join(map(str, shapes))} as "
            "rows, length, bytes); use the same network, layer, crop size and precision on every worker"
        )
    return [shape[0] for shape in shapes]
