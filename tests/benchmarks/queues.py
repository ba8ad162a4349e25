"""Queues of the loss, filled. Needs torch alone."""

from __future__ import annotations

import torch

from d2sm.matching import StatisticsMatching


def fill(loss: StatisticsMatching) -> None:
    """Fill the queues with random rows: what they hold costs nothing."""
    rings = loss.memory.rings
    while loss.memory.fill < loss.queue_size:
        count = min(64, loss.queue_size - loss.memory.fill)
        clean = torch.randn(count, rings.shape[2], device=rings.device)
        loss(clean + 0.3 * torch.randn_like(clean), clean)
