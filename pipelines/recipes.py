"""Named runs, each derived from another in a few lines.

The paper's rows carry its settings as far as they are known (512 crops, Adam at 1e-4 halved at epochs 80 to 400, sigma
uniform in [0, 75], VGG-19 conv5_4); its batch size and queue length are not, ours stand for them. A reduced row says so
in its name: `_cpu` is for two cores, with the offline Phi, and FFDNet small; CBDNet and SADNet have one size.

The weights beside L1 are ours too, since the paper gives none: each such that the term's gradient by the restored image
is about five times L1's, as D2SM's is at 10 (measured on CamVid after 120 steps of the reduced L1 row: 15 for SSIM at
weight 1, 1080 for contextual, 2000 for cross-entropy, 13,000 for perceptual on EfficientNet; for the adversarial term
290 with a new discriminator, 1700 after 30 steps of it beside the network held fixed, 2400 after 60, 3200 after 150).
Perceptual on VGG and LPIPS, whose weights were not at hand, are guesses, and so is the adversarial term's on VGG.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pipelines.config import Config, ConfigError
from pipelines.text import did_you_mean

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
_GPU: dict[str, Any] = {
    "data.crop_size": 256,
    "data.crops_per_image": 4,
    "train.epochs": 60,
    "train.num_workers": 1,
    "train.data_cpus": 6,
    "train.lr": 2e-4,
    "train.schedule": "cosine",
    "train.warmup_steps": 200,
    "train.clip": 1.0,
    "train.ema": 0.999,
    "train.precision": "bf16",
    "evaluate.use_gpu": True,
}
_CPU: dict[str, Any] = {
    "data.crop_size": 96,
    "data.crops_per_image": 8,
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
_SMALL: dict[str, Any] = {"model.width": 32, "model.depth": 8}
# CBDNet and SADNet have one size, so their reduced rows see less instead.
_LESS: dict[str, Any] = {"data.crop_size": 64, "train.epochs": 4, "train.batch_size": 8, "train.lr": 5e-4}
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
_INTERNAL: dict[str, Any] = {"loss.patch_size": 128, "loss.queue_size": 4096}
_INTERNAL_GPU: dict[str, Any] = {"loss.patch_size": 64, "loss.queue_size": 4096}
_INTERNAL_CPU: dict[str, Any] = {"loss.patch_size": 32, "loss.queue_size": 1152}
# Each backbone's own objective. SADNet's authors use the squared error for Gaussian noise, as CBDNet's do.
_OWN: dict[str, dict[str, Any]] = {
    "cbdnet": {"loss.l1": 0.0, "loss.mse": 1.0, "loss.noise_asymmetry": 0.5, "loss.noise_tv": 0.05},
    "sadnet": {"loss.l1": 0.0, "loss.mse": 1.0},
}
# The squared error's gradient is 0.05 to 0.15 of L1's, as its own errors are.
_D2SM_BESIDE_MSE: dict[str, Any] = {"loss.weight": 0.5}


@cache
def recipes() -> Mapping[str, Config]:
    """Every recipe by name: the paper's rows, the same reduced for one GPU and for two cores, and the demo."""
    rows = _table_1() | _table_2()
    found = rows | {f"{name}_gpu": _for_one_gpu(config) for name, config in rows.items()}
    found |= {f"{name}_cpu": _for_two_cores(config) for name, config in rows.items()}
    found["demo"] = found["ffdnet_d2sm_cpu"].replace(_DEMO)
    return {name: config.replace({"recipe": name}) for name, config in found.items()}


def _table_1() -> dict[str, Config]:
    """Objectives on FFDNet; then each other backbone with its own objective, and with D2SM beside it."""
    l1 = Config().replace(_PAPER | _L1)
    rows = {
        "ffdnet_l1": l1,
        "ffdnet_ssim": l1.replace({"loss.ssim": 0.3}),
        "ffdnet_perceptual": l1.replace({"loss.perceptual": 0.05}),
        "ffdnet_lpips": l1.replace({"loss.lpips": 0.1}),
        "ffdnet_contextual": l1.replace({"loss.contextual": 0.005, "loss.contextual_layers": ("conv4_2",)}),
        "ffdnet_cross_entropy": l1.replace(
            {"loss.cross_entropy": 0.002, "loss.segmenter": "espnet-cityscapes", "loss.segmenter_scale": 0.5}
        ),
        "ffdnet_d2sm": l1.replace(_D2SM),
        "ffdnet_d2sm_internal": l1.replace(_D2SM | _INTERNAL),
    }
    for backbone, objective in _OWN.items():
        own = l1.replace({"model.name": backbone, **objective})
        rows[f"{backbone}_own"] = own
        rows[f"{backbone}_d2sm"] = own.replace(_D2SM_BESIDE_MSE)
        rows[f"{backbone}_d2sm_internal"] = own.replace(_D2SM_BESIDE_MSE | _INTERNAL)
    return rows


def _table_2() -> dict[str, Config]:
    """Divergences, all w/ internal; KL is `ffdnet_d2sm_internal`. JSD is a quarter of it near equality, so 4 times.

    And in their place a discriminator on the same features.
    """
    rows = _table_1()
    l1, internal = rows["ffdnet_l1"], rows["ffdnet_d2sm_internal"]
    return {
        "ffdnet_inverse_kl": internal.replace({"loss.divergence": "inverse_kl"}),
        "ffdnet_jsd": internal.replace({"loss.divergence": "jsd", "loss.weight": 4 * internal.loss.weight}),
        "ffdnet_gan": l1.replace({"loss.adversarial": 0.002}),
    }


def _for_one_gpu(row: Config) -> Config:
    """The same row for one GPU: one rule for all, so that reduced rows differ from each other as the rows do."""
    return row.replace(_GPU | (_INTERNAL_GPU if row.loss.patch_size else {}))


def _for_two_cores(row: Config) -> Config:
    """The same row for two CPU cores, likewise."""
    changes = _CPU | (_SMALL if row.model.name == "ffdnet" else _LESS)
    if row.loss.patch_size:
        changes |= _INTERNAL_CPU
    if row.loss.perceptual:
        changes |= {"loss.perceptual": 3e-4}  # another Phi, whose maps have another scale
    if row.loss.contextual:
        changes |= {"loss.contextual_layers": ("blocks.2",)}
    if row.loss.lpips:
        changes |= {"loss.lpips_trunk": "alexnet"}
    return row.replace(changes)


def recipe(name: str) -> Config:
    """A recipe by name.

    Raises:
        ConfigError: when there is none; names the nearest and all.
    """
    known = recipes()
    if name in known:
        return known[name]
    hint = did_you_mean(name, known, cutoff=0.0)
    raise ConfigError(f"recipe {name!r}: no such recipe{hint} Known: {', '.join(known)}")
