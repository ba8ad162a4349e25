"""LPIPS (Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
CVPR 2018, eq. (1)), version 0.1 of its linear heads.

The heads are published as one small file for each trunk (`vgg.pth`, `alex.pth`, `squeeze.pth`). The package
torchmetrics holds these files; they are read from there, and torchmetrics itself is not imported. The trunk is
torchvision's network of that name, with torchvision's mean and standard deviation as the scaling of its input. Nothing
is downloaded here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from d2sm.layers import Layers
from d2sm.weights import WeightsError, read_state_dict

Trunk = Literal["vgg16", "alexnet", "squeezenet1_1"]
LAYERS: dict[Trunk, tuple[str, ...]] = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alexnet": ("relu1", "relu2", "relu3", "relu4", "relu5"),
    "squeezenet1_1": ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9"),
}
CHANNELS: dict[Trunk, tuple[int, ...]] = {
    "vgg16": (64, 128, 256, 512, 512),
    "alexnet": (64, 192, 384, 256, 256),
    "squeezenet1_1": (64, 128, 256, 384, 384, 512, 512),
}
_FILES: dict[Trunk, str] = {"vgg16": "vgg.pth", "alexnet": "alex.pth", "squeezenet1_1": "squeeze.pth"}


class LPIPS(nn.Module):
    """Squared difference of unit-length features, weighted by learned heads: mean over positions, sum over layers.

        L = sum_l mean_hw  w_l . (x_l / |x_l| - y_l / |y_l|)^2                 (1)

    Args:
        heads: file of the linear heads w_l for this trunk, a plain state dict with the published keys; None: the
            published ones, see `installed_heads`.
        trunk: "vgg16", which its authors recommend for training, "alexnet", which they recommend for evaluation, or
            "squeezenet1_1".
        weights: the trunk's, see `features.features`.

    Raises:
        ValueError: no such trunk; heads or weights that are missing, unreadable or of another trunk.

    Example:
        >>> loss = LPIPS(trunk="alexnet", weights="random")
        >>> clean = torch.rand(2, 3, 64, 64)
        >>> restored = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        >>> loss(restored, clean).backward()
        >>> bool(restored.grad.any())
        True
        >>> loss.distances(clean, clean)
        tensor([0., 0.])
    """

    def __init__(
        self, heads: str | Path | None = None, trunk: Trunk = "vgg16", *, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        if trunk not in get_args(Trunk):
            raise ValueError(f"trunk={trunk!r}: must be one of {', '.join(get_args(Trunk))}")
        path = installed_heads(trunk) if heads is None else Path(heads)
        self._heads = [f"head{index}" for index in range(len(LAYERS[trunk]))]
        for name, head in zip(self._heads, _read(path, trunk), strict=True):
            self.register_buffer(name, head, persistent=False)
        self.layers = Layers(trunk, LAYERS[trunk], weights=weights)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] each (`restored` may leave the range) -> a scalar >= 0 in float32, 0 where equal.

        Raises:
            ValueError: as `Layers.of_both`.
        """
        return torch.stack([of_layer.mean() for of_layer in self._by_position(restored, clean)]).sum()

    def distances(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The distance of each image, (B,), of which `forward` gives the mean. Arguments and errors as there."""
        return torch.stack([of_layer.mean((1, 2)) for of_layer in self._by_position(restored, clean)]).sum(0)

    def _by_position(self, restored: Tensor, clean: Tensor) -> list[Tensor]:
        """The weighted squared difference at every position: (B, h, w) for each layer."""
        maps = self.layers.of_both(restored, clean)
        heads = [self.get_buffer(name) for name in self._heads]
        return [(head * (_unit(x) - _unit(y)).square()).sum(1) for (x, y), head in zip(maps, heads, strict=True)]


def installed_heads(trunk: Trunk) -> Path:
    """The file of the published heads for a trunk, in the installed package torchmetrics.

    Raises:
        ValueError: the package is not installed, or does not hold them; with the remedy.
    """
    package = find_spec("torchmetrics")  # finds it without importing it
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "functional/image/lpips_models" / _FILES[trunk]
        if path.is_file():
            return path
    raise ValueError(
        f"heads: LPIPS's published heads for {trunk} are not installed; they come with a package: "
        f"pip install torchmetrics, or give their file ({_FILES[trunk]})"
    )


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
