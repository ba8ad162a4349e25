"""LPIPS (Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
CVPR 2018, eq. (1)), version 0.1 of its linear heads.

The published heads are a small file each (`alex.pth`, `vgg.pth`); the trunk is torchvision's network of that name, and
its scaling of the input is torchvision's mean and standard deviation. Neither is downloaded here.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from d2sm.layers import Layers
from d2sm.objectives.pair import pairs

Trunk = Literal["vgg16", "alexnet"]
LAYERS: dict[Trunk, tuple[str, ...]] = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alexnet": ("relu1", "relu2", "relu3", "relu4", "relu5"),
}
CHANNELS: dict[Trunk, tuple[int, ...]] = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}


class LPIPS(nn.Module):
    """Squared difference of unit-length features, weighted by learned heads, averaged over places, added over layers.

    Args:
        heads: file of the linear heads for this trunk, a plain state dict with the published keys.
        trunk: "vgg16", which its authors advise for training, or "alexnet".
        weights: the trunk's, see `features.features`.

    Raises:
        ValueError: heads or weights that are missing, unreadable or of another trunk.
    """

    def __init__(self, heads: str | Path, trunk: Trunk = "vgg16", *, weights: str | Path | None = None) -> None:
        super().__init__()
        self._heads = [f"head{index}" for index in range(len(LAYERS[trunk]))]
        for name, head in zip(self._heads, _read(Path(heads), trunk), strict=True):
            self.register_buffer(name, head, persistent=False)
        self.layers = Layers(trunk, LAYERS[trunk], weights=weights)

    def forward(self, *, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32, over the batch.

        Raises:
            ValueError: on other shapes, or images smaller than a cell of the deepest layer.
        """
        maps = pairs(self.layers, restored=restored, clean=clean)
        heads = [self.get_buffer(name) for name in self._heads]
        parts = [
            (head * (_unit(x) - _unit(y)).square()).sum(1).mean() for (x, y), head in zip(maps, heads, strict=True)
        ]
        return torch.stack(parts).sum()


def _unit(maps: Tensor) -> Tensor:
    """Of length 1 at every place. `vector_norm` has a gradient of zero, not NaN, where all channels are zero."""
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + 1e-10)


def _read(path: Path, trunk: Trunk) -> list[Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        kind = type(error).__name__
        raise ValueError(f"heads: {path} cannot be read as a plain state dict ({kind}); give LPIPS's file") from error
    heads = []
    for index, channels in enumerate(CHANNELS[trunk]):
        key = f"lin{index}.model.1.weight"
        head = state.get(key) if isinstance(state, dict) else None
        if not isinstance(head, Tensor) or head.shape != (1, channels, 1, 1):
            found = f"{key} {tuple(head.shape)}" if isinstance(head, Tensor) else f"no {key}"
            raise ValueError(f"heads: {path} has {found}: needs (1, {channels}, 1, 1); give LPIPS's heads for {trunk}")
        heads.append(head.float())
    return heads
