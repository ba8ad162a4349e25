"""Adam as a training step uses it: in one fused kernel on a GPU, as torch chooses on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], *, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam for parameters that are all on one device."""
    parameters = list(parameters)
    fused = True if parameters[0].device.type == "cuda" else None  # None leaves the choice to torch
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=fused)


def load(optimizer: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Restore the moments; whether Adam is fused stays as it is, since a run may resume on another kind of device."""
    fused = optimizer.defaults["fused"]
    groups = [{**group, "fused": fused} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})
