"""From the configuration's loss section to a scalar: L1 + weight * D2SM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from d2sm import D2SMLoss
from pipelines.config import Loss


class Objective(nn.Module):
    """The weighted sum of the losses, and each by name. No part of the DDP model; Phi is not in its state."""

    def __init__(self, config: Loss) -> None:
        super().__init__()
        self.l1, self.weight = config.l1, config.weight
        self.d2sm = build_d2sm(config) if config.weight else None

    def forward(self, *, restored: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, H, W) each -> the scalar to descend, and its parts without graph."""
        parts = {"l1": l1_loss(restored, clean)}
        total = self.l1 * parts["l1"]
        if self.d2sm is not None:
            parts["d2sm"] = self.d2sm(restored=restored, clean=clean)
            total = total + self.weight * parts["d2sm"]
        return total, {"loss": total.detach(), **{f"loss.{name}": part.detach() for name, part in parts.items()}}


def build_d2sm(config: Loss) -> D2SMLoss:
    """The D2SM loss as configured."""
    dtypes: dict[str, Any] = {
        "queue_dtype": None if config.queue_dtype == "float32" else getattr(torch, config.queue_dtype),
        "gather_dtype": None if config.gather_dtype == "float32" else getattr(torch, config.gather_dtype),
    }
    return D2SMLoss(
        config.features,
        config.queue_size,
        config.patch_size,
        config.divergence,
        reduction=config.reduction,
        weights=config.features_weights,
        **dtypes,
    )
