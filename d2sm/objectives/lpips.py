"""LPIPS (Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
CVPR 2018, eq. (1)), version 0.1 of its linear heads.

The heads are published as one small file for each trunk (`alex.pth`, `vgg.pth`). The trunk is torchvision's network of
that name, with torchvision's mean and standard deviation as the scaling of its input. Nothing is downloaded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from d2sm.layers import Layers
from d2sm.weights import WeightsError, read_state_dict

Trunk = Literal["vgg16", "alexnet"]
LAYERS: dict[Trunk, tuple[str, ...]] = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alexnet": ("relu1", "relu2", "relu3", "relu4", "relu5"),
}
CHANNELS: dict[Trunk, tuple[int, ...]] = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}


class LPIPS(nn.Module):
    """Squared difference of unit-length features, weighted by learned heads: mean over positions, sum over layers.

        L = sum_l mean_hw  w_l . (x_l / |x_l| - y_l / |y_l|)^2                 (1)

    Args:
        heads: file of the linear heads w_l for this trunk, a plain state dict with the published keys.
        trunk: "vgg16", which its authors recommend for training, or "alexnet".
        weights: the trunk's, see `features.features`.

    Raises:
        ValueError: heads or weights that are missing, unreadable or of another trunk.

    Example (it needs the file of heads):
        loss = LPIPS("vgg.pth")
        loss(restored, clean).backward()
    """

    def __init__(self, heads: str | Path, trunk: Trunk = "vgg16", *, weights: str | Path | None = None) -> None:
        super().__init__()
        self._heads = [f"head{index}" for index in range(len(LAYERS[trunk]))]
        for name, head in zip(self._heads, _read(Path(heads), trunk), strict=True):
            self.register_buffer(name, head, persistent=False)
        self.layers = Layers(trunk, LAYERS[trunk], weights=weights)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32, 0 where equal.

        Raises:
            ValueError: wrong or unequal shapes, or images smaller than a cell of the deepest layer.
        """
        maps = self.layers.of_both(restored, clean)
        heads = [self.get_buffer(name) for name in self._heads]
        of_layers = [
            (head * (_unit(x) - _unit(y)).square()).sum(1).mean() for (x, y), head in zip(maps, heads, strict=True)
        ]
        return torch.stack(of_layers).sum()


def _unit(maps: Tensor) -> Tensor:
    """Unit length at every position. Where all channels are 0, the gradient of `vector_norm` is 0 and not NaN."""
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + 1e-10)


def _read(path: Path, trunk: Trunk) -> list[Tensor]:
    try:
        state = read_state_dict(path)
    except WeightsError as error:
        raise ValueError(f"heads: {path} cannot be read: {error}; give LPIPS's file") from None
    heads = []
    for index, channels in enumerate(CHANNELS[trunk]):
        key = f"lin{index}.model.1.weight"
        head = state.get(key)
        if not isinstance(head, Tensor) or head.shape != (1, channels, 1, 1):
            found = f"{key} {tuple(head.shape)}" if isinstance(head, Tensor) else f"no {key}"
            raise ValueError(f"heads: {path} has {found}: needs (1, {channels}, 1, 1); give LPIPS's heads for {trunk}")
        heads.append(head.float())
    return heads
