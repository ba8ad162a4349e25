"""The queues of features of earlier mini-batches, oldest out first: eq. (3), Memorized Historic Sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """Q^X and Q^Y: the features of the last `queue_size` samples, restored and clean, as unit rows.

    A ring buffer: new rows overwrite the oldest ones in place. Rows that were never written do not count: `filled`,
    `restored` and `clean` leave them out. The buffer is allocated when the first rows arrive, which determine the
    length D, the device and the precision.

    Args:
        queue_size: q, samples stored at most.
        dtype: precision of the stored rows; None: that of the first rows.

    Attributes:
        fill: n <= q, samples stored so far.
        position: row index that the next sample is written to.
        sums_of: what the column sums beside the queues are sums of, by name; saved with the queues. Set by whoever
            keeps these sums. None where the loaded state is of a version that did not save it.
        samples_of: what the samples are features of, by name; saved with the queues, and compared when samples are
            loaded. Set by whoever brings them. None: not known, and not compared.
    """

    def __init__(self, queue_size: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.queue_size, self.dtype = queue_size, dtype
        self.fill, self.position = 0, 0
        self.sums_of: dict[str, Any] | None = None
        self.samples_of: dict[str, str] | None = None
        # Q^X and Q^Y, (2, q, D). The name is part of saved states: renaming it would make them unreadable.
        self.register_buffer("rings", torch.empty(2, queue_size, 0))
        self.rings: Tensor

    @property
    def filled(self) -> Tensor:
        """Q^X and Q^Y: (2, n, D)."""
        return self.rings[:, : self.fill]

    @property
    def restored(self) -> Tensor:
        """Q^X: (n, D)."""
        return self.filled[0]

    @property
    def clean(self) -> Tensor:
        """Q^Y: (n, D)."""
        return self.filled[1]

    @property
    def is_full(self) -> bool:
        """Whether every row holds a sample: n = q."""
        return self.fill == self.queue_size

    def next_indices(self, count: int) -> Tensor:
        """Row indices that the next `count` samples are written to: empty rows, then the oldest. (count,) int64."""
        return (torch.arange(count, device=self.rings.device) + self.position) % self.queue_size

    def oldest_first(self) -> Tensor:
        """Row indices of the samples stored, in the order in which they entered. (n,) int64."""
        start = self.position if self.is_full else 0
        return (torch.arange(self.fill, device=self.rings.device) + start) % self.queue_size

    def replaced(self, indices: Tensor, part: slice) -> Tensor:
        """Those of `indices[part]` whose rows hold samples now; `indices` are the next ones, so empty rows come first.

        Computed from the counts: a mask would make the host wait for an accelerator.
        """
        empty = self.queue_size - self.fill
        return indices[max(part.start, empty) : part.stop]

    def write(self, rows: Tensor) -> None:
        """Append M <= q samples, (2, M, D) restored and clean rows; a full queue overwrites its oldest."""
        count = rows.shape[1]
        self.rings[:, self.next_indices(count)] = rows.to(self.rings.dtype)
        self.position = (self.position + count) % self.queue_size
        self.fill = min(self.fill + count, self.queue_size)

    @contextmanager
    def unchanged(self, count: int) -> Iterator[None]:
        """Undo at the end of the block what the block wrote: at most `count` samples, of which a copy is kept."""
        rings, fill, position = self.rings, self.fill, self.position
        indices = self.next_indices(count)
        overwritten = rings[:, indices]
        try:
            yield
        finally:
            if self.rings is rings:  # else the buffer was allocated within the block
                rings[:, indices] = overwritten
            self.rings, self.fill, self.position = rings, fill, position

    def check(self, rows: Tensor) -> None:
        """Refuse rows (..., D) that cannot enter.

        Raises:
            ValueError: they differ from the stored rows in length or device.
        """
        stored, length = self.rings.shape[2], rows.shape[-1]
        if stored == 0:
            return
        if stored != length:
            raise ValueError(
                f"features: {length} numbers a sample, but the queues hold samples of {stored}; "
                "keep crop size, layer and patch_size, or start with fresh queues"
            )
        if self.rings.device != rows.device:
            raise ValueError(
                f"features: on {rows.device}, but the queues are on {self.rings.device}; move the loss with .to(...)"
            )

    def allocate(self, rows: Tensor) -> None:
        """Allocate the buffer for rows like these (2, M, D) if there is none yet."""
        if self.rings.shape[2] == 0:
            self._allocate(rows.shape[2], self.dtype or rows.dtype, rows.device)

    def _allocate(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        # D is often a power of two. Rows that far apart map to the same sets of a CPU's cache and evict each other, so
        # each row is followed by one unused cache line there. On a GPU a gap would make every checkpoint copy the
        # queues on the device first.
        gap = 64 // dtype.itemsize if device.type == "cpu" else 0
        self.rings = torch.zeros(2, self.queue_size, length + gap, dtype=dtype, device=device)[..., :length]

    def get_extra_state(self) -> dict[str, Any]:
        """Fill, position, `sums_of` and, where it is known, `samples_of`, saved beside the rows."""
        known = {} if self.samples_of is None else {"samples_of": self.samples_of}
        return {"fill": self.fill, "position": self.position, "sums_of": self.sums_of} | known

    def set_extra_state(self, state: Any) -> None:
        saved = state.get("samples_of")
        if state["fill"] and None not in (saved, self.samples_of) and saved != self.samples_of:
            raise ValueError(
                f"features: the saved queues hold features of {_text(saved)}, this loss compares those of "
                f"{_text(self.samples_of)}; build the loss with the same layer and weights, or start with fresh queues"
            )
        self.fill, self.position = int(state["fill"]), int(state["position"])
        self.sums_of = state.get("sums_of")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "rings")
        if saved is not None:
            if saved.shape[1] != self.queue_size:
                raise ValueError(
                    f"queue_size: this loss stores {self.queue_size} samples, the saved state {saved.shape[1]}; "
                    f"use queue_size={saved.shape[1]} or start with fresh queues"
                )
            # Length and, unless given, precision are those of the saved rows: a fresh queue has neither yet.
            self._allocate(saved.shape[2], self.dtype or saved.dtype, self.rings.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _text(samples_of: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in samples_of.items())
