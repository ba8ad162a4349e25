"""What a restored photograph is measured by, photograph by photograph, so that intervals can be drawn later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm import metrics
from d2sm.features import features
from d2sm.layers import Layers
from tests.benchmarks.fronts.data import CLASSES, Photographs, degrade
from tests.benchmarks.fronts.networks import PHI, Segmenter

# Classes of Cityscapes that CamVid's eleven do not name, as CamVid's own 32 classes are merged.
MERGED = {
    "wall": "building", "traffic light": "traffic sign", "terrain": "vegetation", "rider": "bicycle",
    "truck": "car", "bus": "car", "train": "car", "motorcycle": "bicycle",
}  # fmt: skip
AT_ONCE = 17  # photographs


class Evaluation:
    """Evaluate a network on the evaluation photographs.

    psnr: dB. squeezenet: distance of unit feature vectors of four layers of SqueezeNet, which takes part in no
    training. lite0: squared distance on Lite0. camvid, cityscapes: pixels that ESPNet-CamVid at the photographs' size,
    and ESPNet-Cityscapes at 512 x 1024 with its classes merged, got right, pixels labelled, and pixels predicted, of
    each class.
    """

    def __init__(self, photographs: Photographs, weights: Path, dry: bool = False) -> None:
        self.photographs, device = photographs, photographs.val.device
        self.wide = (128, 256) if dry else (512, 1024)
        self.camvid = Segmenter("camvid", weights).to(device)
        self.cityscapes = Segmenter("cityscapes", weights).to(device)
        self.lite0 = features(PHI).to(device)
        layers = ("relu1", "fire3", "fire5", "fire8")
        self.squeezenet = Layers("squeezenet1_0", layers, weights=weights / "squeezenet1_0_imagenet.pth").to(device)
        self.merged = torch.tensor([CLASSES.index(MERGED.get(name, name)) for name in metrics.CLASSES], device=device)
        self.degraded: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, network: nn.Module | None, task: str) -> dict[str, Any]:
        """Lists with an entry for each photograph. network: None measures the degraded photographs."""
        if task not in self.degraded:
            self.degraded[task] = degrade(task, self.photographs.val, names=self.photographs.names)
        images, sigma = self.degraded[task]
        made: dict[str, list[Any]] = {key: [] for key in ("psnr", "squeezenet", "lite0", "camvid", "cityscapes")}
        for start in range(0, len(images), AT_ONCE):
            at = slice(start, start + AT_ONCE)
            clean, restored, labels = self.photographs.val[at], images[at], self.photographs.val_labels[at]
            if network is not None:
                restored = network(restored.contiguous(memory_format=torch.channels_last), sigma[at])
            restored = restored.float().clamp(0, 1)
            error = (restored.double() - clean).square().mean((1, 2, 3)).clamp(min=1e-20)
            made["psnr"] += (-10 * error.log10()).tolist()
            made["lite0"] += (self.lite0(restored) - self.lite0(clean)).square().mean((1, 2, 3)).tolist()
            maps = [(F.normalize(x), F.normalize(y)) for x, y in self.squeezenet.of_both(restored, clean)]
            distances = torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in maps])
            made["squeezenet"] += distances.mean(0).tolist()
            made["camvid"] += _counts(self.camvid(restored), labels)
            wide = F.interpolate(restored, size=self.wide, mode="bilinear")
            scores = F.interpolate(self.cityscapes(wide), size=restored.shape[2:], mode="bilinear")
            made["cityscapes"] += _counts(scores, labels, self.merged)
        return made


def _counts(scores: Tensor, labels: Tensor, merged: Tensor | None = None) -> list[list[list[int]]]:
    """Per photograph (3, 11): pixels right, labelled and predicted of each class, where there is a label."""
    predicted = scores.max(1).indices
    predicted = predicted if merged is None else merged[predicted]
    matrices = [
        metrics.confusion(one, label, classes=len(CLASSES)) for one, label in zip(predicted, labels, strict=True)
    ]
    return [torch.stack([m.diagonal(), m.sum(1), m.sum(0)]).tolist() for m in matrices]
