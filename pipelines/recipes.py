"""Named runs, each derived from another in a few lines.

The paper's rows carry its settings as far as they are known (512 crops, Adam at 1e-4 halved at epochs 80 to 400, sigma
uniform in [0, 75], VGG-19 conv5_4); its batch size and queue length are not, ours stand for them. A reduced row says so
in its name: `_cpu` ends within minutes on two cores, with a small network and the offline Phi.
"""

from __future__ import annotations

import difflib
from typing import Any

from pipelines.config import Config, ConfigError

_PAPER: dict[str, Any] = {
    "data.crop_size": 512,
    "train.epochs": 480,
    "train.batch_size": 16,
    "train.num_workers": 8,
    "train.use_gpu": True,
    "train.cpus_per_worker": 2,
    "train.data_cpus": 8,
    "evaluate.segmenter": "espnet-cityscapes",
}
_CPU: dict[str, Any] = {
    "data.crop_size": 96,
    "data.crops_per_image": 8,
    "model.width": 32,
    "model.depth": 8,
    "loss.features": "efficientnet_lite0.blocks.4",
    "loss.queue_size": 512,
    "train.epochs": 16,
    "train.batch_size": 16,
    "train.num_workers": 2,
    "train.use_gpu": False,
    "train.cpus_per_worker": 0.5,
    "train.data_cpus": 1,
    "train.lr": 2e-3,
    "train.schedule": "cosine",
    "train.warmup_steps": 50,
    "train.clip": 1.0,
    "train.ema": 0.99,
    "evaluate.actors": 2,
}
_DEMO: dict[str, Any] = {
    "data.crop_size": 64,
    "data.crops_per_image": 32,
    "data.shuffle_images": 12,
    "model.width": 24,
    "model.depth": 7,
    "loss.queue_size": 256,
    "train.epochs": 12,
    "evaluate.segmenter": "espnet-scenes",
}
_L1: dict[str, Any] = {"loss.weight": 0.0}
_D2SM: dict[str, Any] = {"loss.weight": 10.0}


def recipes() -> dict[str, Config]:
    """Every recipe by name."""
    found = {"ffdnet_l1": Config().replace(_PAPER | _L1)}
    found["ffdnet_d2sm"] = found["ffdnet_l1"].replace(_D2SM)
    found["ffdnet_d2sm_internal"] = found["ffdnet_d2sm"].replace({"loss.patch_size": 128, "loss.queue_size": 4096})
    found["ffdnet_l1_cpu"] = found["ffdnet_l1"].replace(_CPU)
    found["ffdnet_d2sm_cpu"] = found["ffdnet_l1_cpu"].replace(_D2SM)
    found["ffdnet_d2sm_internal_cpu"] = found["ffdnet_d2sm_cpu"].replace(
        {"loss.patch_size": 32, "loss.queue_size": 1152}
    )
    found["demo"] = found["ffdnet_d2sm_cpu"].replace(_DEMO)
    return {name: config.replace({"recipe": name}) for name, config in found.items()}


def recipe(name: str) -> Config:
    """A recipe by name.

    Raises:
        ConfigError: when there is none; names the nearest and all.
    """
    known = recipes()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise ConfigError(f"recipe {name!r}: did you mean {near}? Known: {', '.join(known)}")
