"""D2SMLoss: deep semantic statistics matching of images. Images -> features -> `StatisticsMatching`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from d2sm.divergence import Divergence, Kernel
from d2sm.feature_queue import FeatureQueue
from d2sm.features import patches
from d2sm.frozen import exclude_from_state_dict
from d2sm.images import IGNORED, RangeCheck, check_ids, check_labels, check_pair, skip_range_checks
from d2sm.layers import phi_of
from d2sm.matching import Reduction, StatisticsMatching, check_integer, is_number
from d2sm.regions import largest_regions, means
from d2sm.weights import fingerprint


class D2SMLoss(nn.Module):
    """The distribution of restored images in a pretrained network's feature space should be that of clean images.

        x = G(noisy)                      restored            (B, 3, H, W)
        y                                 clean               (B, 3, H, W)
        f^x = Phi(x), f^y = Phi(y)        features            (N, D)      N = B, D = C h w          "w/o Internal"
                                                              (N, D)      N = B P, D = C (K/s)^2    "w/ Internal"
                  or, beyond the paper, their means over R_1 .. R_r           N = B r, D = C            `class_regions`
        Q^X, Q^Y                          queues              (q, D)      the newest N enter, the oldest N leave   (3)

        k(a, b) = (a.b / (|a| |b|) + 1) / 2                                      cosine kernel, in [0, 1]
                  or, beyond the paper, exp(a.b / (|a| |b| tau))                 `kernel="exp"`
        g'_ij   = k(Q^X_i, Q^X_j) / sum_{k != j} k(Q^X_k, Q^X_j)                 g_ij: the same over Q^Y           (2)
        L       = sum_j sum_{i != j} g'_ij log(g'_ij / g_ij)                     KL(restored || clean), >= 0       (1)

    P patches of K x K input pixels in a crop; s the stride of Phi; R_1 .. R_r the pixels of the r classes that have the
    most of them in a crop, by its labels. Gradient flows through f^x of this mini-batch only, in its similarities to
    itself and to the history. `StatisticsMatching` computes L in O(N q D).

    Several layers l each have queues of their own, and one pass through a network gives all its layers:

        L = sum_l w_l L_l / sum_l w_l                                            w_l: `layer_weights`, 1 unless given

    In a training loop:
        Gradient accumulation: L is a mean over the queues, not over the batch. Do not divide it by the number k of
            micro-batches; where a framework divides the total by k, multiply the weight of L by k. The gradient of the
            whole batch takes one call with all restored images: d2sm/README.md, "Gradient accumulation".
        Process groups: the queues are those of the default group; there is no `group` argument. Every rank makes every
            call, also in eval mode, each with at least one image: a rank that calls alone waits until the timeout.
            Keep the loss out of the module that DistributedDataParallel wraps, or pass `broadcast_buffers=False`: else
            every forward pass sends the queues.
        Copies of the state: call `allocate` before what copies it in place, or keep the loss out of the model. Not all
            of it is tensors (`get_extra_state`), so safetensors cannot store it. A state with samples of another layer
            or other weights of a named Phi is refused; that a module is the same is up to you.
        Activation checkpointing of a function that calls the loss lets every sample enter twice, since it runs again in
            the backward pass; checkpoint the network alone.
        Precision: Phi runs in the autocast that is on. In float16, by autocast or `.half()`, its gradient underflows
            without a loss scale (`torch.amp.GradScaler`) while the value looks right. In bfloat16 the gradient's
            direction is inexact, the more so the closer both images are; where it matters, call the loss under
            `torch.autocast(device_type, enabled=False)` with images in float32.
        There is no second derivative: differentiating the gradient (`create_graph=True`) raises a RuntimeError.

    Args:
        features: Phi: network and layer ("vgg19.conv5_4", "timm:resnet50.layer3", ...), several of them, or any module
            (B, 3, H, W) -> (B, C, h, w) or `Layers`. It is frozen, kept in eval mode and out of `state_dict()`. A
            module is frozen in place, its parameters and its in-place activations: pass `copy.deepcopy(module)` of one
            that is trained or used elsewhere. It gets images in [0, 1] and normalises them itself.
        queue_size: q, samples stored.
        patch_size: K, side of an internal patch in input pixels, a multiple of the features' stride; None: each crop is
            one sample.
        class_regions: r: a sample is the mean of the features over one class's region, for the r largest classes of a
            crop (`regions.largest_regions`). `forward` then needs labels. Instead of `patch_size`; None: none.
        divergence: "kl" (eq. (1)), "inverse_kl" or "jsd".
        reduction: "mean" divides eq. (1) by the number of stored samples; "sum" is eq. (1).
        weights: file with Phi's weights, for a named network; None: those installed, see `features.features`. With
            several layers, that of every network.
        layer_weights: how much each of several layers counts; none: all the same.
        kernel, temperature, center, queue_dtype, gather_dtype: see `StatisticsMatching`.

    Raises:
        ValueError: an unknown network, layer or option, missing weights, a patch size that does not fit the stride, or
            patches and class regions at once.

    Example:
        >>> loss = D2SMLoss(nn.Conv2d(3, 8, 4, stride=4), queue_size=64, patch_size=8)
        >>> clean = torch.rand(2, 3, 32, 32)
        >>> restored = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        >>> loss(restored, clean).backward()
        >>> restored.grad.abs().sum() > 0
        tensor(True)

    Source: "Deep Semantic Statistics Matching (D2SM) Denoising Network", ECCV 2022, arXiv 2207.09302, eq. (1) to (3).
    """

    def __init__(
        self,
        features: str | Sequence[str] | nn.Module = "vgg19.conv5_4",
        queue_size: int = 1024,
        patch_size: int | None = None,
        divergence: Divergence = "kl",
        *,
        class_regions: int | None = None,
        reduction: Reduction = "mean",
        weights: str | Path | None = None,
        layer_weights: Sequence[float] = (),
        kernel: Kernel = "cosine",
        temperature: float = 0.1,
        center: bool = False,
        queue_dtype: torch.dtype | None = None,
        gather_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("patch_size", patch_size), ("class_regions", class_regions)):
            if value is not None:
                check_integer(name, value)
        self.features = phi_of(features, weights=weights)
        layers = self.features.layers
        for layer in layers:
            if patch_size is not None and (patch_size < 1 or patch_size % layer.stride):
                of_which = f" of {layer.name}" if len(layers) > 1 else ""
                raise ValueError(
                    f"patch_size={patch_size}: must be a positive multiple of the features' stride{of_which}, "
                    f"{layer.stride}"
                )
        if class_regions is not None and (patch_size is not None or not 1 <= class_regions <= IGNORED):
            raise ValueError(
                f"class_regions={class_regions}: give 1 to {IGNORED}, and no patch_size: a sample is a region or patch"
            )
        self.patch_size, self.class_regions = patch_size, class_regions
        # Sides of a patch in cells of each feature map.
        self._patch_cells = [None if patch_size is None else patch_size // layer.stride for layer in layers]
        self._layer_weights = _normalised(layer_weights, len(layers))
        matchings = [
            StatisticsMatching(
                queue_size,
                divergence,
                kernel=kernel,
                temperature=temperature,
                center=center,
                reduction=reduction,
                queue_dtype=queue_dtype,
                gather_dtype=gather_dtype,
            )
            for _ in layers
        ]
        # A single layer's queues have the names that saved states have always had: matching.memory.rings.
        self.matching = matchings[0] if len(matchings) == 1 else nn.ModuleList(matchings)
        if not isinstance(features, nn.Module):  # the weights of a module may be loaded later
            values = chain(self.features.parameters(), self.features.buffers())
            of_weights = fingerprint({str(index): value for index, value in enumerate(values)})
            for matching, layer in zip(matchings, layers, strict=True):
                matching.memory.samples_of = {"layer": layer.name, "weights": of_weights}
        self.check_range, self._labels_checked = RangeCheck(), False
        exclude_from_state_dict(self, "features")  # Phi's weights have a file of their own
        self.register_load_state_dict_post_hook(_skip_range_check)

    def forward(self, restored: Tensor, clean: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compare two batches of images. In training mode their features enter the queues.

        Args:
            restored, clean: (B, 3, H, W) RGB in [0, 1]; `restored` may leave the range as far as noise does.
            labels: (B, H, W) integer train ids, 255 where there is none; with `class_regions` alone.

        Returns:
            A scalar >= 0 in float32 (float64 where the features are), differentiable by `restored`.

        Raises:
            ValueError: no images, wrong shapes, devices or ranges, crops or maps that patches do not tile, queues too
                small, or labels that are missing, not asked for or no train ids. The range of `restored` is checked in
                the first call alone, and not if a state with samples was loaded; in training mode values that are not
                finite pass, since a network that diverges is no matter of the range. The range of `clean` and the
                labels' ids are checked always on the CPU, but in the first call alone on an accelerator, whose host
                would have to wait for it.
        """
        self._check(restored, clean)
        regions = self._regions(restored, labels)
        with torch.no_grad():
            f_y = self._samples(clean, regions)
        f_x = self._samples(restored, regions)
        if not isinstance(self.matching, nn.ModuleList):
            value: Tensor = self.matching(f_x[0], f_y[0])
            return value
        of_layers = [matching(x, y) for matching, x, y in zip(self.matching, f_x, f_y, strict=True)]
        return torch.stack([w * of_layer for w, of_layer in zip(self._layer_weights, of_layers, strict=True)]).sum()

    def allocate(self, height: int, width: int) -> None:
        """Give the queues the shape that images of `height` x `width` pixels need, before the first step.

        They get it in the first step otherwise. What copies a state in place needs it before: `torch.distributed.
        checkpoint.load`, and copies of the buffers as `torch.optim.swa_utils.AveragedModel` keeps them. Phi runs once,
        on a black image. Queues that hold samples keep them.

        Raises:
            ValueError: the size does not fit Phi or the patches, or the queues have the shape of another size.
        """
        self._check_size(height, width)
        device = next(chain(self.features.parameters(), self.matching.buffers())).device
        images = torch.zeros(1, 3, height, width, device=device)
        regions = None
        if self.class_regions is not None:
            regions = largest_regions(images[:, 0].long(), count=self.class_regions)
        with torch.no_grad():
            rows = self._samples(images, regions)
        matchings = [part for part in self.matching.modules() if isinstance(part, StatisticsMatching)]
        for matching, of_layer in zip(matchings, rows, strict=True):
            matching.allocate(of_layer)

    def _samples(self, images: Tensor, regions: Tensor | None = None) -> list[Tensor]:
        """The samples of each layer, (N, D)."""
        found = self.features(images)
        maps = found if isinstance(found, list) else [found]
        if regions is not None:
            return [means(each, regions) for each in maps]
        self.check_patches(maps, f"images of {images.shape[2]}x{images.shape[3]} pixels", "images of another size")
        return [patches(each, side=side) for each, side in zip(maps, self._patch_cells, strict=True)]

    def _regions(self, images: Tensor, labels: Tensor | None) -> Tensor | None:
        if (labels is None) is not (self.class_regions is None):
            given = "missing, but class_regions needs them" if labels is None else "are for class_regions alone"
            raise ValueError(f"labels: {given}")
        if labels is None or self.class_regions is None:
            return None
        check_labels(labels, images)
        if not self._labels_checked or labels.device.type == "cpu":
            check_ids(labels, classes=IGNORED)
            self._labels_checked = True
        return largest_regions(labels, count=self.class_regions)

    def check_patches(self, maps: Sequence[Tensor], images: str, others: str) -> None:
        """Make sure that patches tile the maps of all layers.

        Args:
            maps: Phi's, (B, C, h, w).
            images: what they are of, for the message.
            others: what to take instead, for the message.

        Raises:
            ValueError: they do not; one line that names the layer.
        """
        for layer, cells, of_layer in zip(self.features.layers, self._patch_cells, maps, strict=True):
            if cells and any(size % cells for size in of_layer.shape[2:]):
                raise ValueError(
                    f"patch_size={self.patch_size}: its {cells}x{cells} cells do not tile the "
                    f"{of_layer.shape[2]}x{of_layer.shape[3]} map that {layer.name} gives of {images}; take patches of "
                    f"{layer.stride} pixels, {others}, or another layer"
                )

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the queues; Phi stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def _check(self, restored: Tensor, clean: Tensor) -> None:
        check_pair(restored, clean)
        self._check_size(*clean.shape[2:])
        self.check_range(restored, clean, finite=not self.training)

    def _check_size(self, height: int, width: int) -> None:
        for axis, size in (("H", height), ("W", width)):
            if self.patch_size and size % self.patch_size:
                raise ValueError(
                    f"patch_size={self.patch_size}: does not divide {axis}={size} of the images; crop them so"
                )


def _skip_range_check(self: D2SMLoss, _: Any) -> None:
    """A loaded state with samples is of a loss whose first call was checked, and which goes on here."""
    if any(queue.fill for queue in self.modules() if isinstance(queue, FeatureQueue)):
        skip_range_checks(self)


def _normalised(weights: Sequence[float], count: int) -> list[float]:
    numbers = all(is_number(weight) and 0 < weight < math.inf for weight in weights)
    if weights and (len(weights) != count or not numbers):
        raise ValueError(
            f"layer_weights={list(weights)}: give {count} positive numbers that are finite, one for each layer"
        )
    return [weight / sum(weights) for weight in weights] or [1 / count] * count
