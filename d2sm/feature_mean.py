"""The mean by which features are centred before they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.distributed import sum_over_workers


class FeatureMean(nn.Module):
    """m, the mean of clean features, over about as many samples as the queues hold.

        m <- m + (sum_i f^y_i - M m) / t        M new samples of all ranks; t = min(samples seen with these, q)

    As long as no more than q samples were seen it is their exact mean; after that older ones fade. A sample is centred
    once, by the mean of the step in which it enters, so that its similarities to others never change afterwards. A step
    with a clean feature that is not finite leaves the mean as it is.

    Args:
        queue_size: q.
    """

    def __init__(self, queue_size: int) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.mean: Tensor
        self.seen: Tensor

    def centred(self, restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) features minus the mean, to which the clean ones are added first; float32 or wider."""
        dtype = torch.promote_types(restored.dtype, torch.float32)
        rows = clean.double()
        self.allocate(rows)
        new = sum_over_workers(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
        total, count = new[:-1], new[-1]
        before, mean = self.seen.to(rows.device), self.mean.to(rows.device)
        seen = before + count
        updated = mean + (total - count * mean) / seen.clamp(max=self.queue_size)
        finite = total.isfinite().all()  # a step that is not must not remain in the mean
        self.seen, self.mean = torch.where(finite, seen, before), torch.where(finite, updated, mean)
        mean = self.mean.to(dtype)
        return restored.to(dtype) - mean, clean.to(dtype) - mean

    def allocate(self, rows: Tensor) -> None:
        """Allocate the mean of rows like these (N, D) if there is none yet."""
        if not self.mean.numel():
            self.mean = rows.new_zeros(rows.shape[1], dtype=torch.float64)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Undo the updates made within the block."""
        mean, seen = self.mean, self.seen
        try:
            yield
        finally:
            self.mean, self.seen = mean, seen

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "mean")
        if saved is not None:  # its length is that of the saved features: a fresh one has none yet
            self.mean = torch.zeros_like(saved, device=self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
