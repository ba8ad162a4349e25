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


def parts(step: int, best: int | None = None) -> dict[str, Any]:
    weights = {name: torch.full_like(tensor, step) for name, tensor in build(CONFIG.model).state_dict().items()}
    meta = {"step": step, "name": "run"} | ({"best": best_entry(best)} if best else {})
    return {"weights": weights, "state": {"step": torch.tensor(step)}, "config": CONFIG, "meta": meta, "log": {}}


def kept(place: str, *steps: int, keep: int = 2, best: int | None = None) -> None:
    with CheckpointWriter(RunFolder.at(place), keep) as writer:
        for step in steps:
            writer.save(step, **parts(step, best))


def best_entry(step: int) -> dict[str, Any]:
    """What meta.json says if this step is the best one, by PSNR."""
    return {"metric": "psnr.sigma25", "step": step, "value": 20 + step / 100}


def bundle_of(folder: Path, config: Config, *, step: int = 0, log: Any = None, **meta: Any) -> Path:
    torch.manual_seed(0)
    weights = build(config.model).state_dict()
    checkpoint.write(folder, weights=weights, state={}, config=config, meta={"step": step, **meta}, log=log)
    return folder


def with_best(folder: Path, *steps: tuple[int, int]) -> None:
    """Checkpoints in a run's folder: (step, the step that is best up to it by PSNR)."""
    for step, best in steps:
        bundle_of(folder / checkpoint.name_of(step), CONFIG, step=step, best=best_entry(best))


CONFIG = Config().replace({"model.width": 4, "model.depth": 3})
