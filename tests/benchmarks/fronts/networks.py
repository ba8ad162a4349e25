"""The network that is trained, the frozen networks that look at its results, and the objectives."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm import D2SMLoss
from d2sm.divergence import Kernel
from d2sm.features import features, wrap
from d2sm.models import ESPNet, FFDNet
from d2sm.objectives import CrossEntropy
from tests.benchmarks.fronts.data import CLASSES

PHI = "efficientnet_lite0.blocks.4"
OBJECTIVES = {
    "perceptual": "squared difference of Lite0's features",
    "d2sm_patches": "D2SM on Lite0, patches of 32, q = 2048",
    "d2sm_whole": "D2SM on Lite0, whole crops, q = 1024",
    "temperature": "D2SM on Lite0, patches of 32, with the kernel exp((cos - 1) / 0.1)",
    "task_d2sm": "D2SM on the encoder of ESPNet-CamVid, patches of 32",
    "task_temperature": "the same with that kernel",
    "task_perceptual": "squared difference of the features of ESPNet-CamVid's encoder",
    "cross_entropy": "cross-entropy of ESPNet-CamVid on the labels",
}


def load(path: Path) -> dict[str, Tensor]:
    """A plain state dict."""
    return cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True))


def denoiser(size: tuple[int, int], weights: Path | None = None) -> FFDNet:
    """FFDNet of (width, depth), from a file or as the package initialises it. The published file has KAIR's keys."""
    network = FFDNet(*size)
    if weights is not None:
        network.load_state_dict({key.replace("model.", "body."): value for key, value in load(weights).items()})
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Segmenter(nn.Module):
    """A published ESPNet with its normalisation: (B, 3, H, W) RGB in [0, 1] -> scores (B, classes, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        if name == "camvid":
            self.classes, network = len(CLASSES), ESPNet(12, 2, 8, shallow="pyramid")
            mean, std = (110.4, 109.0, 106.1), (71.6, 72.3, 69.7)
        else:
            self.classes, network = 19, ESPNet(20, 2, 8, shallow="conv")
            mean, std = (72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307)
        network.load_state_dict(load(weights / f"espnet_p2_q8_{name}.pth"))
        self.network = network.eval().requires_grad_(False)
        for key, values in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """As the published networks expect images: BGR, in units of 0..255, and divided by 255 in the end."""
        return (images.flip(1) * 255 - self.mean) / self.std / 255

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(self.normalised(images)))[:, : self.classes]


class Encoder(nn.Module):
    """The map that ESPNet's coarse classifier reads: (B, 3, H, W) -> (B, 256, H / 8, W / 8)."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        segmenter.network.encoder.classifier = nn.Identity()  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        segmenter = self.segmenter
        return cast(Tensor, segmenter.network.encoder(segmenter.normalised(images))[3])


class FeatureDistance(nn.Module):
    """The perceptual loss on any features: their mean squared difference."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.phi = phi

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            of_clean = self.phi(clean)
        return F.mse_loss(self.phi(restored), of_clean)


def objective(name: str, weights: Path, device: torch.device, dry: bool = False) -> nn.Module | None:
    """One of `OBJECTIVES` with empty queues; None for "l1", which has no second term. dry: short queues."""
    if name == "l1":
        return None
    made: nn.Module
    if name == "cross_entropy":
        made = CrossEntropy(Segmenter("camvid", weights))
    else:
        phi = wrap(Encoder(Segmenter("camvid", weights))) if name.startswith("task_") else features(PHI)
        if name.endswith("perceptual"):
            made = FeatureDistance(phi)
        else:
            whole = name == "d2sm_whole"
            queue_size = 64 if dry else 1024 if whole else 2048
            kernel: Kernel = "exp" if name.endswith("temperature") else "cosine"
            made = D2SMLoss(phi, queue_size, patch_size=None if whole else 32, kernel=kernel, temperature=0.1)
    return made.requires_grad_(False).to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def value(term: nn.Module, restored: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """The objective of a batch, whatever it needs."""
    if isinstance(term, CrossEntropy):
        return cast(Tensor, term(restored, clean, labels=labels))
    return cast(Tensor, term(restored, clean))


def restore(network: nn.Module, degraded: Tensor, sigma: Tensor) -> Tensor:
    """A training step's forward pass: the network in bfloat16, its result in float32."""
    with torch.autocast(degraded.device.type, torch.bfloat16):
        restored = network(degraded.contiguous(memory_format=torch.channels_last), sigma)
    return cast(Tensor, restored.float())
