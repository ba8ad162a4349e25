"""Recipes: the named configurations, each derived from another in a few lines.

The rows of the paper's tables have its settings as far as they are published: crops of 512, Adam at 1e-4 halved at
epochs 80 to 400, sigma uniform in [0, 75], VGG-19 conv5_4. The batch size and the queue length are not published; ours
stand for them, and so do the weights of the terms beside L1. Each weight makes the gradient of its term by the restored
image about five times that of L1, as it is for D2SM at weight 10 (measured on CamVid; see tests/benchmarks/LOG.md).
Those of LPIPS, and of the perceptual and the adversarial loss on VGG, are guesses.

A suffix names a reduced row: `_gpu` for one GPU, `_cpu` for two CPU cores, with a Phi whose weights a Python package
brings and a small FFDNet. CBDNet and SADNet have one size, so their `_cpu` rows train on smaller crops, and less.

Other degradations than the paper's are recipes of these two kinds alone, such as `jpeg_d2sm_cpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.config import Config, ConfigError
from pipelines.text import did_you_mean


@dataclass(frozen=True)
class Recipe:
    """A named configuration and one sentence about it."""

    description: str
    config: Config

    def derived(self, description: str, changes: Mapping[str, Any]) -> Recipe:
        """Another recipe, with some keys changed; its description goes on from this one's."""
        return Recipe(f"{self.description}{description}", self.config.replace(changes))


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
_D2SM: dict[str, Any] = {"loss.weight": 10.0}
_D2SM_BESIDE_MSE: dict[str, Any] = {"loss.weight": 0.5}  # the gradient of the squared error is smaller than that of L1
# By name: what a network is trained against, its chain, and the levels at which it is measured.
_DEGRADATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "noise_clip": ("the noise of 8-bit files", "noise_clip:0..75", ("noise_clip:25", "noise_clip:35", "noise_clip:50")),
    "poisson": ("a sensor's noise", "poisson:10..200", ("poisson:100", "poisson:30", "poisson:10")),
    "jpeg": ("JPEG of quality 10 to 60", "jpeg:10..60", ("jpeg:40", "jpeg:20", "jpeg:10")),
    "blur": ("Gaussian blur", "blur:0.5..3", ("blur:1", "blur:2", "blur:3")),
    "motion": ("motion blur", "motion:3..15", ("motion:5", "motion:9", "motion:15")),
    "sr2": ("downsampling by 2", "downsample:2", ("downsample:2",)),
    "sr4": ("downsampling by 4", "downsample:4", ("downsample:4",)),
    "haze": ("synthetic haze", "haze:0.2..1.5", ("haze:0.5", "haze:1", "haze:1.5")),
    "photo": (
        "blur, noise and JPEG together",
        "blur:0..1.5+noise_clip:0..30+jpeg:30..95",
        ("blur:0.5+noise_clip:10+jpeg:80", "blur:1+noise_clip:20+jpeg:50"),
    ),
}
_INTERNAL: dict[str, Any] = {"loss.patch_size": 128, "loss.queue_size": 4096}
_INTERNAL_GPU: dict[str, Any] = {"loss.patch_size": 64, "loss.queue_size": 4096}
_INTERNAL_CPU: dict[str, Any] = {"loss.patch_size": 32, "loss.queue_size": 1152}


@cache
def catalogue() -> Mapping[str, Recipe]:
    """Every recipe by name: the paper's rows, the same reduced for one GPU and for two CPU cores, other degradations
    so reduced, and the demo.
    """
    rows = _table_1() | _table_2()
    found = dict(rows)
    for name, row in rows.items():
        found[f"{name}_gpu"] = _for_one_gpu(row)
    for name, row in rows.items():
        found[f"{name}_cpu"] = _for_two_cores(row)
    for name, row in _other_degradations().items():
        found[f"{name}_gpu"], found[f"{name}_cpu"] = _for_one_gpu(row), _for_two_cores(row)
    demo = found["ffdnet_d2sm_cpu"].config.replace(_DEMO)
    found["demo"] = Recipe("what `d2sm demo` trains: a small FFDNet with L1 and D2SM on drawn street scenes", demo)
    return {name: Recipe(one.description, one.config.replace({"recipe": name})) for name, one in found.items()}


def recipes() -> Mapping[str, Config]:
    """The configuration of every recipe by name."""
    return {name: one.config for name, one in catalogue().items()}


def descriptions() -> Mapping[str, str]:
    """One sentence about every recipe by name."""
    return {name: f"{one.description[0].upper()}{one.description[1:]}." for name, one in catalogue().items()}


def recipe(name: str) -> Config:
    """A recipe's configuration by name.

    Raises:
        ConfigError: there is none of this name; names the nearest and all.
    """
    known = recipes()
    if name in known:
        return known[name]
    hint = did_you_mean(name, known, cutoff=0.0)
    raise ConfigError(f"recipe {name!r}: no such recipe{hint} Known: {', '.join(known)}")


def _table_1() -> dict[str, Recipe]:
    """Objectives on FFDNet; then each other backbone with its own objective, and with D2SM beside it."""
    l1 = Recipe("FFDNet with L1", Config().replace(_PAPER | {"loss.weight": 0.0}))
    contextual = {"loss.contextual": 0.005, "loss.contextual_layers": ("conv4_2",)}
    segmenter = {"loss.segmenter": "espnet-cityscapes", "loss.segmenter_scale": 0.5}
    d2sm, internal = " and D2SM on whole crops", " and D2SM on internal patches"
    mse = {"loss.l1": 0.0, "loss.mse": 1.0}  # for SADNet its authors' objective for Gaussian noise
    sadnet = {"model.name": "sadnet", **mse}
    cbdnet = {"model.name": "cbdnet", **mse, "loss.noise_asymmetry": 0.5, "loss.noise_tv": 0.05}
    own = {
        "cbdnet": Recipe("CBDNet with its own objective (squared error, noise estimate)", l1.config.replace(cbdnet)),
        "sadnet": Recipe("SADNet with its own objective (squared error)", l1.config.replace(sadnet)),
    }
    rows = {
        "ffdnet_l1": l1.derived(" alone", {}),
        "ffdnet_ssim": l1.derived(" and SSIM", {"loss.ssim": 0.3}),
        "ffdnet_perceptual": l1.derived(" and the perceptual loss", {"loss.perceptual": 0.05}),
        "ffdnet_lpips": l1.derived(" and LPIPS", {"loss.lpips": 0.1}),
        "ffdnet_contextual": l1.derived(" and the contextual loss", contextual),
        "ffdnet_cross_entropy": l1.derived(
            " and the cross-entropy of a frozen segmenter", {"loss.cross_entropy": 0.002, **segmenter}
        ),
        "ffdnet_d2sm": l1.derived(d2sm, _D2SM),
        "ffdnet_d2sm_internal": l1.derived(internal, _D2SM | _INTERNAL),
    }
    for backbone, row in own.items():
        rows[f"{backbone}_own"] = row
        rows[f"{backbone}_d2sm"] = row.derived(d2sm, _D2SM_BESIDE_MSE)
        rows[f"{backbone}_d2sm_internal"] = row.derived(internal, _D2SM_BESIDE_MSE | _INTERNAL)
    return rows


def _table_2() -> dict[str, Recipe]:
    """Other divergences on internal patches (KL is `ffdnet_d2sm_internal`), and a discriminator on the same features.

    JSD is a quarter of KL where the distributions are nearly equal, so its weight is 4 times that of KL.
    """
    rows = _table_1()
    internal = rows["ffdnet_d2sm_internal"]
    jsd = {"loss.divergence": "jsd", "loss.weight": 4 * internal.config.loss.terms["d2sm"]}
    gan = rows["ffdnet_l1"].config.replace({"loss.adversarial": 0.002})
    return {
        "ffdnet_inverse_kl": internal.derived(", inverse KL divergence", {"loss.divergence": "inverse_kl"}),
        "ffdnet_jsd": internal.derived(", Jensen-Shannon divergence", jsd),
        "ffdnet_gan": Recipe("FFDNet with L1 and an adversarial loss on Phi's features", gan),
    }


def _other_degradations() -> dict[str, Recipe]:
    """FFDNet with D2SM against each other degradation; it is told the noise's sigma, 0 where there is no noise."""
    d2sm = _table_1()["ffdnet_d2sm"]
    return {
        f"{name}_d2sm": d2sm.derived(f", against {what}", {"degrade.chain": chain, "evaluate.levels": levels})
        for name, (what, chain, levels) in _DEGRADATIONS.items()
    }


def _for_one_gpu(row: Recipe) -> Recipe:
    """A row reduced for one GPU. All rows are reduced by one rule, so that they differ as the full rows do."""
    return row.derived("; reduced for one GPU", _GPU | (_INTERNAL_GPU if row.config.loss.patch_size else {}))


def _for_two_cores(row: Recipe) -> Recipe:
    """A row reduced for two CPU cores, by one rule as well."""
    loss = row.config.loss
    changes = _CPU | (_SMALL if row.config.model.name == "ffdnet" else _LESS)
    if loss.patch_size:
        changes |= _INTERNAL_CPU
    if "perceptual" in loss.terms:
        changes |= {"loss.perceptual": 3e-4}  # the features of this Phi are larger than VGG's
    if "contextual" in loss.terms:
        changes |= {"loss.contextual_layers": ("blocks.2",)}
    if "lpips" in loss.terms:
        changes |= {"loss.lpips_trunk": "alexnet"}
    return row.derived("; reduced for two CPU cores", changes)
