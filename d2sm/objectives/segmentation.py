"""Cross-entropy of a frozen segmenter on the restored image: an objective of the task, not of the pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.frozen import FrozenWrapper
from d2sm.images import IGNORED, RangeCheck, check_ids, check_labels, check_pair

ABSENT = -1e4
"""The logit of a class that a segmenter was not trained on: never the largest, yet finite in half precision too."""


class CrossEntropy(nn.Module):
    """Pixelwise cross-entropy, averaged over the labelled pixels of an image, then over images.

    Every image has the same weight, however few of its pixels are labelled, and an image without labels counts as 0:
    the value does not depend on how a batch is split over workers. Pixels of a class that the segmenter was not trained
    on are ignored too.

    Args:
        segmenter: (B, 3, h, w) RGB in [0, 1] -> logits (B, C, h, w), for any size. It is frozen and not saved.
        scale: factor by which crops are resized (bilinear, without antialiasing) before the segmenter, so that objects
            have the size it was trained on; its logits are resized back.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> loss = CrossEntropy(nn.Conv2d(3, 19, 1))
        >>> clean, labels = torch.rand(2, 3, 16, 16), torch.randint(0, 19, (2, 16, 16))
        >>> restored = (clean + 0.1).requires_grad_()
        >>> loss(restored, clean, labels=labels).backward()
        >>> bool(restored.grad.any())
        True
    """

    def __init__(self, segmenter: nn.Module, *, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale}: must be positive; 1 keeps the size of the crops")
        self.scale, self.segmenter = scale, FrozenWrapper(segmenter)
        self.check_range, self._labels_checked = RangeCheck(), False

    def forward(self, restored: Tensor, clean: Tensor, *, labels: Tensor) -> Tensor:
        """The cross-entropy on `restored`, which is not clamped: pixels out of range would get no gradient.

        Args:
            restored: (B, 3, H, W), nominally in [0, 1], which is checked in the first call.
            clean: (B, 3, H, W); its values are not used.
            labels: (B, H, W), integer train ids below C, 255 where there is none. On an accelerator, whose host would
                have to wait for it, only the ids of the first batch are checked.

        Returns:
            A scalar >= 0 in float32; NaN where the segmenter's logits are.

        Raises:
            ValueError: wrong or unequal shapes, `restored` far from [0, 1], labels on another device or that are no
                integers, ids out of range (raw label ids, for example), or a segmenter that changes its images in
                place.
        """
        check_pair(restored, clean)
        check_labels(labels, restored)
        self.check_range(restored)
        size, labels = restored.shape[2:], labels.long()
        resized = _resized(restored, [max(1, round(side * self.scale)) for side in size])
        logits = _resized(self.segmenter(resized), size).float()
        if not self._labels_checked or labels.device.type == "cpu":
            check_ids(labels, classes=logits.shape[1])
            self._labels_checked = True
        of_label = logits.gather(1, labels.clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
        labels = torch.where(of_label <= ABSENT / 2, IGNORED, labels)  # so that NaN counts
        sums = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").sum((1, 2))
        counts = (labels != IGNORED).sum((1, 2))
        return (sums / counts.clamp(min=1)).mean()


def _resized(maps: Tensor, size: list[int] | torch.Size) -> Tensor:
    if maps.shape[2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
