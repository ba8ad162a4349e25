"""Single training steps without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.config import Config
from pipelines.data import index, stream
from pipelines.recipes import recipe
from tests.helpers.objectives import write_heads

CPU = torch.device("cpu")
CROPS, SIDE = 5, 32
SMALL = {"model.width": 8, "model.depth": 4, "loss.features": "efficientnet_lite0.bn1"}


def small(name: str, root: Path, heads: Path) -> Config:
    """A row as it is, but for its length, and for weights that no package brings."""
    config = recipe(name)
    changes: dict[str, Any] = {
        "data.root": str(root), "data.crop_size": 64 if config.model.name == "ffdnet" else 32, "train.batch_size": 2,
        "train.num_workers": 1, "train.warmup_steps": 0, "train.lr": 1e-4,
    }  # fmt: skip
    if "lpips" in config.loss.terms:
        changes |= {"loss.lpips_heads": str(heads), "loss.lpips_weights": "random"}
    if "cross_entropy" in config.loss.terms:
        changes |= {"loss.segmenter": "tests.helpers.segmenters:segmenter"}
    return config.replace(changes)


def share(config: Config, root: Path) -> stream.WorkerBatch:
    """The first step's crops, cut as an ingest task cuts them."""
    items = index.index(root, "train", labels="optional")
    (row,) = stream.IngestTask(config, items)({"first": np.array([0]), "last": np.array([1])})
    return {key: column[0] for key, column in row.items()}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "l1": {"loss.weight": 0} | SMALL,
    "d2sm": SMALL,
    "ratio": {"loss.gradient_ratio": 2.0, "loss.ssim": 1.0, "loss.adversarial": 0.5} | SMALL,
    "patches": {"loss.patch_size": 16, "loss.divergence": "jsd"} | SMALL,
    "regions": {"loss.class_regions": 2} | SMALL,
    "adversarial": {"loss.adversarial": 0.5} | SMALL,
    "all": {
        "model.name": "cbdnet", "loss.features": "squeezenet1_0.fire3", "loss.mse": 1, "loss.ssim": 1,
        "loss.perceptual": 1, "loss.lpips": 1, "loss.lpips_weights": "random", "loss.lpips_trunk": "alexnet",
        "loss.contextual": 1, "loss.contextual_layers": ["fire5"], "loss.cross_entropy": 0.1,
        "loss.segmenter": "tests.helpers.segmenters:segmenter", "loss.noise_asymmetry": 1, "loss.noise_tv": 1,
        "loss.adversarial": 1,
    },
}  # fmt: skip


def config(name: str, folder: Path, **changes: Any) -> Config:
    heads = {"loss.lpips_heads": str(write_heads(folder / "alex.pth"))} if name == "all" else {}
    always = {
        "data.crop_size": SIDE,
        "loss.features_weights": "random",
        "loss.queue_size": 24,
        "train.batch_size": CROPS,
    }
    return Config().replace(always | OBJECTIVES[name] | heads | changes)


def rows_are_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training step take the tensors of `batch` as its row of the stream."""
    monkeypatch.setattr("pipelines.data.stream.to_tensors", lambda row, *_: (row["clean"], row["noisy"], row["sigma"]))
    monkeypatch.setattr("pipelines.data.stream.labels", lambda row, _: row.get("labels"))


def batch(step: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    clean = torch.rand(CROPS, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    return {
        "clean": clean, "noisy": clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=dtype),
        "sigma": torch.linspace(10, 50, CROPS, dtype=dtype),
        "labels": torch.randint(0, 19, (CROPS, SIDE, SIDE), generator=generator).byte(),
    }  # fmt: skip


def row(step: int, crops: int = CROPS) -> dict[str, Any]:
    """A row of the stream, numbers drawn from the step."""
    random = np.random.default_rng(step)
    return {
        "clean": random.integers(0, 256, (crops, SIDE, SIDE, 3), np.uint8),
        "sigma": np.linspace(10, 50, crops, dtype=np.float32),
        "seed": np.arange(crops) + 100 * step,
        "label": random.integers(0, 19, (crops, SIDE, SIDE), np.uint8),
    }
