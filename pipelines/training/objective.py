"""The weighted sum of objectives that training minimises, built from the loss section and the list of objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from d2sm import D2SMLoss
from d2sm.balance import GradientBalance
from d2sm.features import Features
from d2sm.label_names import CLASSES
from d2sm.layers import Layers
from d2sm.objectives import LPIPS, TERMS, Adversarial, Contextual, CrossEntropy, Perceptual, Term
from pipelines.config import Config, ConfigError
from pipelines.data import labels as label_sets
from pipelines.networks.features import build as build_phi
from pipelines.networks.features import check_crops, check_patch_size, maps_of_crop
from pipelines.runtime import memory, resources
from pipelines.sections import Loss
from pipelines.text import one_line
from pipelines.tracking.segmenter import for_phi, load_segmenter, segmenter_store


class Objective(nn.Module):
    """The weighted sum of the terms that are on; each is an attribute by its name, None if it is off.

    With `loss.gradient_ratio` the terms that are not pixelwise are scaled, all alike, so that the gradient of their sum
    by the restored images has that ratio to the one of the pixelwise terms (`GradientBalance`). Terms of the network's
    estimate of the noise have no gradient by the restored images and keep their weights.

    It is not part of the DDP model. Its state holds what the terms remember (D2SM's queues, the discriminator) and the
    lengths of gradients, and no frozen network.

    Args:
        config: the loss section.
        store_uri: of the store that a registered segmenter comes from; empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.
        classes: of the labels, see `networks.segmenters.load`.

    Raises:
        ConfigError, ValueError: a network of a term cannot be built as configured. One line.
    """

    d2sm: D2SMLoss | None
    adversarial: Adversarial | None
    balance: GradientBalance | None

    def __init__(self, config: Loss, *, store_uri: str = "", classes: Sequence[str] = CLASSES) -> None:
        super().__init__()
        self.weights, self.inputs = config.terms, {name: config.inputs_of(name) for name in TERMS}
        on = [term for term in TERMS.values() if term.name in self.weights or term.name == "l1"]
        # The order in which terms are built and evaluated decides a run's last bits: random initial weights are drawn
        # in it, and autograd adds up the terms' gradients in the reverse of it. Old runs depend on this one.
        self.order = sorted(on, key=lambda term: (bool(term.extra_losses), term.name in _BUILDERS))
        for term in TERMS.values():
            self.register_module(term.name, None)
        for term in self.order:
            self.register_module(term.name, build(term, config, store_uri=store_uri, classes=classes))
        ratio = config.gradient_ratio
        self.balance = None if ratio is None else GradientBalance(ratio)

    def forward(
        self,
        restored: Tensor,
        clean: Tensor,
        *,
        sigma: Tensor | None = None,
        estimate: Tensor | None = None,
        labels: Tensor | None = None,
        rank_weight: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and the losses to log, detached: "loss" (the weighted sum) and "loss.<name>".

        L1 is always logged. With `loss.gradient_ratio` the factor of the weights is logged too, as "weight_scale"; the
        logged "loss" is the weighted sum without it. The scalar also holds a term's extra losses with weight 1, such as
        the discriminator's. They have no parameter in common with the weighted sum, so one backward pass serves both.

        Args:
            restored, clean: (B, 3, H, W), this rank's crops. With `loss.gradient_ratio` the gradient by `restored` is
                computed here, and the backward pass of the scalar begins there.
            sigma: (B,), in units of 0..255.
            estimate: (B, 3, H, W), the network's estimate of the noise.
            labels: (B, H, W) train ids.
            rank_weight: B divided by the ranks' average of it. DDP averages the ranks' gradients, so the mean over a
                rank with more crops has to count for more. Terms that see the batch of all ranks are not scaled.

        Raises:
            ValueError: a term needs an input that is None.
        """
        given = {"sigma": sigma, "estimate": None if estimate is None else estimate.float(), "labels": labels}
        losses: dict[str, Tensor] = {}
        for term in self.order:
            inputs = {name: given[name] for name in self.inputs[term.name]}
            if missing := [name for name, value in inputs.items() if value is None]:
                raise ValueError(f"loss.{term.weight_key}: the term needs {', '.join(missing)}, which this batch lacks")
            result = getattr(self, term.name)(restored, clean, **inputs)
            values = result if term.extra_losses else (result,)
            losses |= dict(zip((term.name, *term.extra_losses), values, strict=True))
        total = self._weighted_sum(losses, 1.0)
        logged = {"loss": total.detach(), **{f"loss.{name}": loss.detach() for name, loss in losses.items()}}
        if self.balance is not None:
            total = self._balanced_sum(self.balance, restored, losses, rank_weight)
            logged["weight_scale"] = self.balance.scale
        elif rank_weight != 1.0:
            total = self._weighted_sum(losses, rank_weight)
        if all(TERMS[name].uses_estimate for name in self.weights):
            # DistributedDataParallel needs a gradient of every weight, also of those that restore: 0.
            total = total + 0 * restored.sum()
        for term in self.order:
            for name in term.extra_losses:
                total = total + rank_weight * losses[name]
        return total, logged

    def _balanced_sum(
        self, balance: GradientBalance, restored: Tensor, losses: dict[str, Tensor], rank_weight: float
    ) -> Tensor:
        pixelwise = [name for name in self.weights if TERMS[name].pixelwise]
        of_estimate = [name for name in self.weights if TERMS[name].uses_estimate]
        others = [name for name in self.weights if name not in (*pixelwise, *of_estimate)]
        total = balance(
            restored,
            self._weighted_sum(losses, rank_weight, pixelwise),
            self._weighted_sum(losses, rank_weight, others),
        )
        return total + self._weighted_sum(losses, rank_weight, of_estimate) if of_estimate else total

    def _weighted_sum(
        self, losses: dict[str, Tensor], rank_weight: float, names: Iterable[str] | None = None
    ) -> Tensor:
        """Of the terms of these names; None: of all."""
        scales = {name: 1.0 if TERMS[name].global_batch else rank_weight for name in self.weights}
        names = self.weights if names is None else names
        return torch.stack([self.weights[name] * scales[name] * losses[name] for name in names]).sum()


def build(term: Term, config: Loss, *, store_uri: str = "", classes: Sequence[str] = CLASSES) -> nn.Module:
    """A term of the objective as configured.

    Args:
        store_uri, classes: see `Objective`.

    Raises:
        ConfigError, ValueError: it cannot be built so. One line.
    """
    phi = partial(build_phi, config, for_phi(store_uri, classes))
    segmenter = partial(load_segmenter, resize=False, uri=store_uri, classes=classes)
    if term.name in _BUILDERS:
        return _BUILDERS[term.name](config, phi, segmenter)
    return term.load()(phi()) if term.uses_phi else term.load()()


_MakePhi = Callable[..., Features | Layers]  # (layers=...): at these layers, by default at those of loss.features
_MakeSegmenter = Callable[..., nn.Module]  # (name, weights=...)


def _d2sm(config: Loss, phi: _MakePhi, _: _MakeSegmenter) -> D2SMLoss:
    return D2SMLoss(
        phi(),
        config.queue_size,
        config.patch_size,
        config.divergence,
        class_regions=config.class_regions,
        reduction=config.reduction,
        layer_weights=config.layer_weights,
        kernel=config.kernel,
        temperature=config.temperature,
        center=config.center,
        queue_dtype=None if config.queue_dtype == "float32" else getattr(torch, config.queue_dtype),
        gather_dtype=None if config.gather_dtype == "float32" else getattr(torch, config.gather_dtype),
    )


def _perceptual(config: Loss, phi: _MakePhi, _: _MakeSegmenter) -> Perceptual:
    return Perceptual(phi(layers=config.perceptual_layers))


def _contextual(config: Loss, phi: _MakePhi, _: _MakeSegmenter) -> Contextual:
    return Contextual(phi(layers=config.contextual_layers), bandwidth=config.contextual_bandwidth)


def _lpips(config: Loss, _: _MakePhi, __: _MakeSegmenter) -> LPIPS:
    try:
        return LPIPS(config.lpips_heads, config.lpips_trunk, weights=config.lpips_weights)
    except ValueError as error:
        raise ConfigError(
            f"loss.lpips_trunk={config.lpips_trunk}: {one_line(error, None)} (the keys are loss.lpips_weights and "
            "loss.lpips_heads)"
        ) from None


def _cross_entropy(config: Loss, _: _MakePhi, segmenter: _MakeSegmenter) -> CrossEntropy:
    assert config.segmenter is not None  # validated with the configuration
    return CrossEntropy(segmenter(config.segmenter, weights=config.segmenter_weights), scale=config.segmenter_scale)


# Terms with options of their own. The others are built from nothing, or from Phi alone.
_BUILDERS: dict[str, Callable[[Loss, _MakePhi, _MakeSegmenter], nn.Module]] = {
    "d2sm": _d2sm,
    "perceptual": _perceptual,
    "lpips": _lpips,
    "contextual": _contextual,
    "cross_entropy": _cross_entropy,
}


def check_objective(config: Config) -> None:
    """Build the objective once, before anything is started, so that missing weights are reported at once.

    Raises:
        ConfigError, ValueError: a term cannot be built, Phi does not suit the crops and patches, or there is too little
            memory for the queues. One line.
    """
    check_patch_size(config.loss)
    short = config.loss.model_copy(update={"queue_size": 2})  # "jsd" allocates q x q numbers when it is built
    objective = Objective(short, store_uri=segmenter_store(config), classes=label_sets.of(config).like)
    check_crops(objective, config.data.crop_size)
    if objective.d2sm is not None and not resources.on_a_cluster():
        _check_memory(config, maps_of_crop(objective.d2sm.features, config.data.crop_size))


def _check_memory(config: Config, maps: Sequence[Tensor]) -> None:
    """Make sure that this machine can hold the queues of its workers; on GPUs, the part that is allocated here first.

    Args:
        maps: Phi's, of one crop.

    Raises:
        ConfigError: it cannot. Names loss.queue_size.
    """
    loss, train = config.loss, config.train
    size, jsd, workers = loss.queue_size, loss.divergence == "jsd", train.workers[0]
    if loss.class_regions:
        length = sum(each.shape[1] for each in maps)
    else:
        length = sum(each.numel() for each in maps) * train.batch_size // config.samples_per_step
    needed = 0 if train.use_gpu else 2 * size * length * getattr(torch, loss.queue_dtype).itemsize  # Q^X and Q^Y
    needed += 2 * size**2 * torch.float64.itemsize * len(maps) if jsd else 0  # the matrices of kernels
    have = memory.free_ram()
    if needed * workers > have:
        of_each = f" for each of {workers} workers" if workers > 1 else ""
        raise ConfigError(
            f"loss.queue_size={size}: the queues take {needed / 1e9:.3g} GB{of_each} ({length:,} numbers a sample"
            f"{' and, for loss.divergence=jsd, the kernels of all pairs' if jsd else ''}), but there are "
            f"{have / 1e9:.3g} GB of free memory; lower it"
        )
