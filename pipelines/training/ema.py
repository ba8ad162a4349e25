"""EMA: the exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """The EMA of the weights; buffers are copied. Its decay is warmed up, so that a short run forgets its random start.

    After s updates, the next one has the decay min(decay, (1 + s) / (10 + s)); the first one copies. The names in
    `state_dict()` are those of `torch.optim.swa_utils.AveragedModel`, which older runs saved. That class is not used,
    because some of its versions copy their count to the device, and the host waits for the copy.

    Args:
        network: whose weights are averaged; it is copied.
        decay: in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = copy.deepcopy(network)
        self.register_buffer("n_averaged", torch.tensor(0))  # stays on the CPU, where reading it waits for nothing
        self.n_averaged: Tensor

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the weights of `network` into the average."""
        steps = int(self.n_averaged)
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(network.parameters())
        if steps == 0:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + steps) / (10 + steps)))
        for mine, buffer in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(buffer)
        self.n_averaged += 1
