"""Every reduced row on real photographs: training steps as a worker takes them, and what they do to the row's loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config import Config
from pipelines.data import index, stream
from pipelines.recipes import recipe, recipes
from pipelines.training.objective import Objective
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.objectives import write_heads
from tests.helpers.training_steps import CPU

ROWS = [name for name in recipes() if name.endswith("_cpu")]
HELD_OUT = 3  # batches


def on_camvid(name: str, shared: Path, folder: Path) -> Config:
    """The row as it is, but for a short schedule, a batch of 8, and weights that are not at hand."""
    config = recipe(name)
    changes: dict[str, Any] = {
        "data.root": str(shared / "data/camvid"), "train.num_workers": 0, "train.batch_size": 8,
        "train.warmup_steps": 5, "train.epochs": 1, "train.schedule": "constant", "train.threads": 2,
    }  # fmt: skip
    if "lpips" in config.loss.terms:
        changes |= {"loss.lpips_heads": str(write_heads(folder / "alex.pth")), "loss.lpips_weights": "random"}
    if "cross_entropy" in config.loss.terms:
        weights = shared / "data/weights/espnet_p2_q8_camvid.pth"
        changes |= {"loss.segmenter": "espnet-camvid", "loss.segmenter_weights": str(weights)}
    return config.replace(changes)


def batches(config: Config, steps: int) -> list[stream.WorkerBatch]:
    """The first steps of the plan, cut as an ingest task cuts them."""
    prepare = stream.IngestTask(config, index.index(config.data.root, "train", labels="optional"))
    rows = prepare({"first": np.array([0]), "last": np.array([steps])})
    return [{key: column[0] for key, column in row.items()} for row in rows]


@torch.no_grad()
def loss_on(state: TrainState, held_out: list[stream.WorkerBatch]) -> float:
    """The row's own loss on crops it is not trained on, its queues empty and its discriminator new."""
    torch.manual_seed(0)
    objective = Objective(state.config.loss)
    total = 0.0
    for row in held_out:
        clean, noisy, sigma = stream.to_tensors(row, state.device, state.config.degradation)
        restored, estimate = state.model(noisy, sigma)
        labels = stream.labels(row, state.device)
        _, parts = objective(restored=restored, clean=clean, sigma=sigma, estimate=estimate, labels=labels)
        total += parts["loss"].item()
    return total / len(held_out)


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_a_row_learns_on_real_photographs(name: str, shared: Path, tmp_path: Path) -> None:
    config = on_camvid(name, shared, tmp_path)
    steps = 120 if config.model.name == "ffdnet" else 12  # FFDNet starts as the identity, and is worse at first
    *rows, a, b, c = batches(config, steps + HELD_OUT)
    torch.set_num_threads(2)
    state = TrainState(config, steps_per_epoch=100, device=CPU)
    before = loss_on(state, [a, b, c])
    for step, row in enumerate(rows):
        train_step(state, row, step)
    after = loss_on(state, [a, b, c])
    print(f"{name}: {before:.4f} -> {after:.4f} in {steps} steps")
    assert after < before
