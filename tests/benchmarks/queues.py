"""Queues of the loss, filled. Needs torch alone."""

from __future__ import annotations

import torch
from torch import nn

from d2sm.matching import StatisticsMatching


def fill(loss: StatisticsMatching | nn.ModuleList) -> None:
    """Fill the queues, of one layer or of each, with random rows: what they hold costs nothing."""
    if not isinstance(loss, StatisticsMatching):
        for of_layer in loss:
            assert isinstance(of_layer, StatisticsMatching)
            fill(of_layer)
        return
    rings = loss.memory.rings
    while loss.memory.fill < loss.queue_size:
        count = min(64, loss.queue_size - loss.memory.fill)
        clean = torch.randn(count, rings.shape[2], device=rings.device)
        loss(clean + 0.3 * torch.randn_like(clean), clean)
