"""A rank's batches as tensors on its device: on a GPU their copies and their noise run beside the step before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.config import Config
from pipelines.data import stream


class Batch(NamedTuple):
    """A rank's crops of one step.

    Attributes:
        clean, noisy: (b, 3, h, w) in channels-last memory.
        sigma: (b,), in units of 0..255.
        labels: (b, h, w) uint8 train ids, 255 to be ignored; None if no objective needs them.
    """

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
    labels: Tensor | None


class Loader:
    """Makes batches of a stream's rows.

    On a GPU the copies from pinned memory and the noise are queued on a CUDA stream of their own. The host runs ahead
    of the device, so they are done while the step before still runs; the step's stream waits for them, the host does
    not. The numbers are the same as on one stream.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, row: stream.WorkerBatch) -> Batch:
        """The batch of a row of the stream after `stream.trim`."""
        if self.side is None:
            return self._load(row)
        with torch.cuda.stream(self.side):
            batch = self._load(row)
        step = torch.cuda.current_stream(self.device)
        step.wait_stream(self.side)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(step)  # else its memory would be given to the next batch while the step reads it
        return batch

    def _load(self, row: stream.WorkerBatch) -> Batch:
        clean, noisy, sigma = stream.to_tensors(row, self.device, self.config.degradation)
        return Batch(clean, noisy, sigma, stream.labels(row, self.device))
