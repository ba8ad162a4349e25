"""What a frozen segmenter makes of the restored image, against the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.frozen import FrozenWrapper

ABSENT = -1e4
"""The logit of a class a network does not know: never the largest, yet finite, also in half precision."""

_IGNORED = 255


class CrossEntropy(nn.Module):
    """Pixelwise cross-entropy, averaged over the labelled pixels of an image, then over images.

    So that it does not depend on how a batch is dealt to workers, an image counts the same however few of its pixels
    are labelled; one without any counts as 0. Pixels of a class that the segmenter does not know are left out too.

    Args:
        segmenter: (B, 3, h, w) RGB in [0, 1] -> logits (B, C, h, w), for any size. It is frozen and not saved.
        scale: factor by which crops are resized (bilinearly, without antialiasing) before it, so that objects have
            the size it was trained at; its logits are resized back.

    Raises:
        ValueError: on a scale that is not positive.
    """

    def __init__(self, segmenter: nn.Module, *, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale}: must be positive; 1 keeps the size of the crops")
        self.scale, self.segmenter = scale, FrozenWrapper(segmenter)

    def forward(self, *, restored: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy; `restored` is not clamped, else pixels out of range would get no gradient.

        Args:
            restored: (B, 3, H, W), nominally in [0, 1].
            labels: (B, H, W), integer train ids below C, 255 where there is none.

        Returns:
            A scalar >= 0 in float32.

        Raises:
            ValueError: on labels of another shape.
        """
        size = restored.shape[2:]
        if labels.shape != (len(restored), *size):
            wanted = (len(restored), *size)
            raise ValueError(f"labels: shape {tuple(labels.shape)}; give {wanted}, one train id a pixel")
        labels = labels.long()
        logits = _resized(self.segmenter(_resized(restored, [round(side * self.scale) for side in size])), size).float()
        known = logits.gather(1, labels.clamp(max=logits.shape[1] - 1)[:, None])[:, 0] > ABSENT / 2
        labels = torch.where(known, labels, _IGNORED)
        each = F.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="none").sum((1, 2))
        counted = (labels != _IGNORED).sum((1, 2))
        return (each / counted.clamp(min=1)).mean()


def _resized(maps: Tensor, size: list[int] | torch.Size) -> Tensor:
    if maps.shape[2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
