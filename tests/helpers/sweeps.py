"""Sweeps of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config import Config
from tests.conftest import tiny_config
from tuning.sweep import Sweep


def tiny_base(root: Path, storage: Path, **changes: Any) -> Config:
    """L1 alone (unless a space says otherwise), trained and evaluated by the run's own process."""
    tiny = {"train__num_workers": 0, "loss__weight": 0.0, "evaluate__actors": 0, "evaluate__sigmas": [25]}
    return tiny_config(root, storage, **(tiny | changes))


def tiny_sweep(root: Path, storage: Path, *, space: Any = None, **changes: Any) -> Sweep:
    """A grid over two learning rates by the last L1 of training, unless `changes` say otherwise; its name is "s"."""
    options: dict[str, Any] = {"search": "grid", "scheduler": "none", "metrics": ("loss.l1",), "reports": 1}
    return Sweep(tiny_base(root, storage), space or {"train.lr": [1e-3, 2e-3]}, "s", **(options | changes))
