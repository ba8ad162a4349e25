"""Small checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.config import Config
from pipelines.networks.models import build
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.writer import CheckpointWriter


def parts(step: int) -> dict[str, Any]:
    weights = {name: torch.full_like(tensor, step) for name, tensor in build(CONFIG.model).state_dict().items()}
    meta = {"step": step, "name": "run"}
    return {"weights": weights, "state": {"step": torch.tensor(step)}, "config": CONFIG, "meta": meta, "log": {}}


def kept(place: str, *steps: int, keep: int = 2) -> None:
    with CheckpointWriter(RunFolder.at(place), keep) as writer:
        for step in steps:
            writer.save(step, **parts(step))


def bundle_of(folder: Path, config: Config, *, step: int = 0) -> Path:
    torch.manual_seed(0)
    weights = build(config.model).state_dict()
    checkpoint.write(folder, weights=weights, state={}, config=config, meta={"step": step})
    return folder


CONFIG = Config().replace({"model.width": 4, "model.depth": 3})
