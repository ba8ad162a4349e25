"""From the configuration's loss section to a scalar: the weighted sum of the terms that are on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from d2sm import D2SMLoss
from d2sm.features import features
from d2sm.objectives import (
    LPIPS,
    Adversarial,
    Contextual,
    CrossEntropy,
    NoiseAsymmetry,
    NoiseTotalVariation,
    Perceptual,
    SSIMLoss,
)
from pipelines import config as configs
from pipelines.config import Config, ConfigError
from pipelines.networks import segmenters
from pipelines.sections import Loss


class Objective(nn.Module):
    """The weighted sum of the losses, and each by name. No part of the DDP model; frozen networks are not in its state.

    Raises:
        ConfigError, ValueError: a network of a term cannot be built as configured. One line.
    """

    def __init__(self, config: Loss) -> None:
        super().__init__()
        self.weights = config.terms
        self.d2sm = build_d2sm(config) if config.weight else None
        self.perceptual = build_perceptual(config) if config.perceptual else None
        self.lpips = build_lpips(config) if config.lpips else None
        self.contextual = build_contextual(config) if config.contextual else None
        self.cross_entropy = build_cross_entropy(config) if config.cross_entropy else None
        self.adversarial = build_adversarial(config) if config.adversarial else None

    def forward(
        self,
        *,
        restored: Tensor,
        clean: Tensor,
        sigma: Tensor | None = None,
        estimate: Tensor | None = None,
        labels: Tensor | None = None,
        share: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to descend, and its parts without graph. L1 is always among the parts.

        With the adversarial term the scalar also holds the discriminator's own loss, which is no part of `loss`: no
        parameter has a gradient by both, so one backward pass serves both sides.

        Args:
            restored, clean: (B, 3, H, W).
            sigma: (B,), in units of 0..255, and estimate: (B, 3, H, W); for the terms on the estimate of the noise.
            labels: (B, H, W) train ids; for the cross-entropy.
            share: of the step's crops that are here, over an equal share; workers' gradients are averaged, so means
                over more crops have to count for more. D2SM knows all workers' samples and needs no such weight.
        """
        parts = {"l1": l1_loss(restored, clean), **self._images(restored, clean)}
        if self.cross_entropy is not None and labels is not None:
            parts["cross_entropy"] = self.cross_entropy(restored, clean, labels=labels)
        if estimate is not None and sigma is not None:
            # A term of weight 0 costs nothing worth leaving out.
            estimate = estimate.float()
            parts["noise_asymmetry"] = NoiseAsymmetry()(restored, clean, estimate=estimate, sigma=sigma)
            parts["noise_tv"] = NoiseTotalVariation()(restored, clean, estimate=estimate)
        if self.adversarial is not None:
            parts["adversarial"], parts["discriminator"] = self.adversarial(restored, clean)
        total = self._weighted(parts, 1.0)
        logged = {"loss": total.detach(), **{f"loss.{name}": part.detach() for name, part in parts.items()}}
        if share != 1.0:
            total = self._weighted(parts, share)
        return total + share * parts.get("discriminator", 0.0), logged

    def _weighted(self, parts: dict[str, Tensor], share: float) -> Tensor:
        """Terms that are a mean over the crops here times `share`, and D2SM as it is."""
        shares = {name: 1.0 if name == "d2sm" else share for name in self.weights}
        return torch.stack([weight * shares[name] * parts[name] for name, weight in self.weights.items()]).sum()

    def _images(self, restored: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """The terms that compare the two images."""
        parts = {}
        if "mse" in self.weights:
            parts["mse"] = mse_loss(restored, clean)
        if "ssim" in self.weights:
            parts["ssim"] = SSIMLoss()(restored, clean)
        for name in ("d2sm", "perceptual", "lpips", "contextual"):
            term = getattr(self, name)
            if term is not None:
                parts[name] = term(restored, clean)
        return parts


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


def build_perceptual(config: Loss) -> Perceptual:
    """The perceptual loss on Phi's network, at D2SM's layer unless others are named."""
    network, layer = _phi(config)
    return Perceptual(network, config.perceptual_layers or (layer,), weights=config.features_weights)


def build_contextual(config: Loss) -> Contextual:
    """The contextual loss on Phi's network, at D2SM's layer unless others are named."""
    network, layer = _phi(config)
    layers = config.contextual_layers or (layer,)
    return Contextual(network, layers, bandwidth=config.contextual_bandwidth, weights=config.features_weights)


def build_adversarial(config: Loss) -> Adversarial:
    """The adversarial loss on Phi, at D2SM's layer."""
    return Adversarial(config.features, weights=config.features_weights)


def build_lpips(config: Loss) -> LPIPS:
    """LPIPS, from the file of heads that it needs."""
    if not config.lpips_heads:
        file = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}[config.lpips_trunk]
        raise ConfigError(
            f"loss.lpips={config.lpips:g}: needs LPIPS's linear heads; give loss.lpips_heads=FILE (its authors publish "
            f"{file} for {config.lpips_trunk})"
        )
    return LPIPS(config.lpips_heads, config.lpips_trunk, weights=config.lpips_weights)


def build_cross_entropy(config: Loss) -> CrossEntropy:
    """The cross-entropy of the segmenter, which sees crops at their own scale."""
    assert config.segmenter is not None  # the configuration says so
    segmenter = segmenters.load(config.segmenter, weights=config.segmenter_weights, resize=False)
    return CrossEntropy(segmenter, scale=config.segmenter_scale)


def _phi(config: Loss) -> tuple[str, str]:
    network, _, layer = config.features.partition(".")
    return network, layer


def check_objective(config: Config) -> None:
    """All weights are at hand, and Phi's stride fits the patches: said before anything is started."""
    if config.loss.weight and config.loss.patch_size:
        stride = features(config.loss.features, weights="random").stride
        if config.loss.patch_size % stride:
            raise configs.ConfigError(
                f"loss.patch_size={config.loss.patch_size}: must be a multiple of {config.loss.features}'s stride, "
                f"{stride}"
            )
    Objective(config.loss)
