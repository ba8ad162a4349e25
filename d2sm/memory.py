"""The memory of historic features: two rings of unit vectors, oldest out first (eq. (3) of the paper)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Memory(nn.Module):
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
        self.register_buffer("ring_x", torch.empty(queue_size, 0))
        self.register_buffer("ring_y", torch.empty(queue_size, 0))
        self.ring_x: Tensor
        self.ring_y: Tensor

    @property
    def restored(self) -> Tensor:
        """Q^X: (n, D), the n <= q rows filled so far."""
        return self.ring_x[: self.fill]

    @property
    def clean(self) -> Tensor:
        """Q^Y: (n, D)."""
        return self.ring_y[: self.fill]

    def slots(self, count: int) -> Tensor:
        """Where the next `count` rows will stand: the empty slots, then those of the oldest rows. (count,) int64."""
        return (torch.arange(count, device=self.ring_x.device) + self.position) % self.queue_size

    def leaving(self, count: int) -> Tensor:
        """Which of the next `count` slots hold a row that has to go. (count,) bool."""
        return self.slots(count) < self.fill

    def write(self, restored: Tensor, clean: Tensor) -> None:
        """Let (M, D) rows enter, M <= q; as many of the oldest leave when the rings are full."""
        slots = self.slots(len(restored))
        self.ring_x[slots] = restored.to(self.ring_x.dtype)
        self.ring_y[slots] = clean.to(self.ring_y.dtype)
        self.position = (self.position + len(restored)) % self.queue_size
        self.fill = min(self.fill + len(restored), self.queue_size)

    def allocate(self, rows: Tensor) -> None:
        """Make room for rows like these, the first time; afterwards check that they are alike."""
        if self.ring_x.shape[1] == 0:
            shape, dtype = (self.queue_size, rows.shape[1]), self.dtype or rows.dtype
            self.ring_x = torch.zeros(shape, dtype=dtype, device=rows.device)
            self.ring_y = torch.zeros(shape, dtype=dtype, device=rows.device)
        if self.ring_x.shape[1] != rows.shape[1]:
            raise ValueError(
                f"features: {rows.shape[1]} numbers a sample, but the queues hold samples of {self.ring_x.shape[1]}; "
                "keep crop size, layer and patch_size, or start with fresh queues"
            )
        if self.ring_x.device != rows.device:
            raise ValueError(
                f"features: on {rows.device}, but the queues are on {self.ring_x.device}; move the loss with .to(...)"
            )

    def get_extra_state(self) -> dict[str, int]:
        """Fill and position, beside the rings in `state_dict()`."""
        return {"fill": self.fill, "position": self.position}

    def set_extra_state(self, state: Any) -> None:
        self.fill, self.position = int(state["fill"]), int(state["position"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("ring_x", "ring_y"):
            saved = state_dict.get(prefix + name)
            if saved is None:
                continue
            if len(saved) != self.queue_size:
                raise ValueError(
                    f"queue_size: this loss remembers {self.queue_size} samples, the saved state {len(saved)}; "
                    f"use queue_size={len(saved)} or start with fresh queues"
                )
            # D and precision are the saved ones: a fresh ring has neither yet.
            setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
