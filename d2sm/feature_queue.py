"""The memory of historic features: two rings of unit vectors, oldest out first (eq. (3) of the paper)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """Q^X and Q^Y: at most `queue_size` pairs of feature rows.

    Rows never filled do not exist for anybody: `restored` and `clean` give the filled ones only. The rings are
    allocated when the first rows come, since only they know D, device and precision; no row is ever moved.

    Args:
        queue_size: q, pairs remembered at most.
        dtype: precision of the stored rows; None stores them as they come.
    """

    def __init__(self, queue_size: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.queue_size, self.dtype = queue_size, dtype
        self.fill, self.position = 0, 0
        self.register_buffer("rings", torch.empty(2, queue_size, 0))  # Q^X, Q^Y
        self.rings: Tensor

    @property
    def filled(self) -> Tensor:
        """Q^X and Q^Y: (2, n, D), the n <= q rows filled so far."""
        return self.rings[:, : self.fill]

    @property
    def restored(self) -> Tensor:
        """Q^X: (n, D)."""
        return self.filled[0]

    @property
    def clean(self) -> Tensor:
        """Q^Y: (n, D)."""
        return self.filled[1]

    def slots(self, count: int) -> Tensor:
        """Where the next `count` rows will stand: the empty slots, then those of the oldest rows. (count,) int64."""
        return (torch.arange(count, device=self.rings.device) + self.position) % self.queue_size

    def leaving(self, slots: Tensor, part: slice) -> Tensor:
        """Those of a part of the next slots that hold a row which has to go; the empty ones come first."""
        empty = self.queue_size - self.fill  # counted here: a mask of slots would make an accelerator's host wait
        return slots[max(part.start, empty) : part.stop]

    def write(self, pairs: Tensor) -> None:
        """Let (2, M, D) restored and clean rows enter, M <= q; as many of the oldest leave when the rings are full."""
        count = pairs.shape[1]
        self.rings[:, self.slots(count)] = pairs.to(self.rings.dtype)
        self.position = (self.position + count) % self.queue_size
        self.fill = min(self.fill + count, self.queue_size)

    def allocate(self, pairs: Tensor) -> None:
        """Make room for rows like these, the first time; afterwards check that they are alike."""
        length = pairs.shape[2]
        if self.rings.shape[2] == 0:
            self._lay_out(length, self.dtype or pairs.dtype, pairs.device)
        if self.rings.shape[2] != length:
            raise ValueError(
                f"features: {length} numbers a sample, but the queues hold samples of {self.rings.shape[2]}; "
                "keep crop size, layer and patch_size, or start with fresh queues"
            )
        if self.rings.device != pairs.device:
            raise ValueError(
                f"features: on {pairs.device}, but the queues are on {self.rings.device}; move the loss with .to(...)"
            )

    def _lay_out(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        # A cache line between rows: D is often a power of two, and rows that far apart fall on the same places of a
        # CPU's cache. The gradient's product takes 0.7x the time for it (8 x 1024 with 1024 x 8192, MKL).
        gap = 64 // dtype.itemsize
        self.rings = torch.zeros(2, self.queue_size, length + gap, dtype=dtype, device=device)[..., :length]

    def get_extra_state(self) -> dict[str, int]:
        """Fill and position, beside the rings in `state_dict()`."""
        return {"fill": self.fill, "position": self.position}

    def set_extra_state(self, state: Any) -> None:
        self.fill, self.position = int(state["fill"]), int(state["position"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "rings")
        if saved is not None:
            if saved.shape[1] != self.queue_size:
                raise ValueError(
                    f"queue_size: this loss remembers {self.queue_size} samples, the saved state {saved.shape[1]}; "
                    f"use queue_size={saved.shape[1]} or start with fresh queues"
                )
            # D and precision are the saved ones: a fresh ring has neither yet.
            self._lay_out(saved.shape[2], saved.dtype, self.rings.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
