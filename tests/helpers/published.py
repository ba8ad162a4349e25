"""FFDNet as others publish it: random weights in each of their forms, and what each network computes, said plainly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolutions(width: int = 8, depth: int = 4, *, seed: int = 0, noise: float = 0.05) -> list[tuple[Tensor, Tensor]]:
    """Kernels and biases of a random FFDNet for colour that nearly returns its input, so that it keeps colours."""
    generator = torch.Generator().manual_seed(seed)
    channels = [13, *[max(width, 12)] * (depth - 1), 12]
    found = []
    for c_in, c_out in pairwise(channels):
        kernel = noise / c_in * torch.randn(c_out, c_in, 3, 3, generator=generator)
        kernel[range(12), range(12), 1, 1] += 1
        found.append((kernel, 0.01 * torch.randn(c_out, generator=generator)))
    return found


def write_kair(path: Path, layers: list[tuple[Tensor, Tensor]]) -> Path:
    """KAIR's form: model.0, model.2, ..., our conventions."""
    names = {"weight": 0, "bias": 1}
    torch.save({f"model.{2 * k}.{name}": pair[i] for k, pair in enumerate(layers) for name, i in names.items()}, path)
    return path


def write_matlab(path: Path, layers: list[tuple[Tensor, Tensor]], **changed: float) -> Path:
    """The authors' form: kernels (out, in, right, down) and biases in a MatConvNet network in HDF5.

    Args:
        layers: kernels (out, in, down, right), their channels in the authors' order.
        changed: of every convolution, such as stride=2.
    """
    with h5py.File(path, "w") as file:

        def stored(array: Any) -> Any:
            return file.create_dataset(f"#refs#/{len(file.get('#refs#', ()))}", data=array).ref

        def layer(kind: str, **entries: Any) -> Any:
            group = file.create_group(f"#refs#/layer{len(file['#refs#']) if '#refs#' in file else 0}")
            group["type"] = np.array([[ord(letter)] for letter in kind], dtype=np.uint16)
            for key, value in entries.items():
                group[key] = value
            return group.ref

        def cell(references: list[Any]) -> np.ndarray:
            return np.array([[one] for one in references], dtype=h5py.ref_dtype)

        found = [layer("SubP", scale=[[0.5]]), layer("concat")]
        for number, (kernel, bias) in enumerate(layers):
            arrays = [stored(kernel.transpose(-1, -2).numpy()), stored(bias.numpy()[None])]
            options = {"pad": [[1.0]], "stride": [[1.0]], "dilate": [[1.0]]}
            options |= {key: [[value]] for key, value in changed.items()}
            found.append(layer("conv", weights=cell(arrays), **options))
            if number < len(layers) - 1:
                found.append(layer("relu", leak=[[0.0]]))
        file["net/layers"] = cell([*found, layer("SubP", scale=[[2.0]])])
    return path


def authors(layers: list[tuple[Tensor, Tensor]], noisy: Tensor, sigma: float) -> Tensor:
    """What the authors' network gives for (B, 3, H, W) with even sides: pixels counted down each column first."""
    places = [(colour, right, down) for colour in range(3) for right in (0, 1) for down in (0, 1)]
    folded = torch.stack([noisy[:, colour, down::2, right::2] for colour, right, down in places], dim=1)
    maps = torch.cat([folded, torch.full_like(folded[:, :1], sigma / 255)], dim=1)
    for number, (kernel, bias) in enumerate(layers):
        maps = F.conv2d(maps.relu() if number else maps, kernel, bias, padding=1)
    restored = torch.empty_like(noisy)
    for channel, (colour, right, down) in enumerate(places):
        restored[:, colour, down::2, right::2] = maps[:, channel]
    return restored


class PyTorchFFDNet(nn.Module):
    """ffdnet-pytorch's network for colour: three noise maps first, batch normalisation, its output is the noise."""

    def __init__(self, width: int = 16, depth: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(15, width, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.Conv2d(width, 12, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                for tensor, low, high in ((layer.weight, 0.5, 1.5), (layer.bias, -0.2, 0.2)):
                    nn.init.uniform_(tensor, low, high)
                assert layer.running_mean is not None and layer.running_var is not None
                layer.running_mean.uniform_(-0.2, 0.2)
                layer.running_var.uniform_(0.5, 2.0)
        with torch.no_grad():
            layers[-1].weight.mul_(0.2)  # type: ignore[operator, union-attr]
        self.eval()

    def forward(self, noisy: Tensor, sigma: float) -> Tensor:
        """The restored image: the noisy one without the noise that is predicted."""
        folded = F.pixel_unshuffle(noisy, 2)
        levels = torch.full_like(folded[:, :3], sigma / 255)
        return noisy - F.pixel_shuffle(self.layers(torch.cat([levels, folded], dim=1)), 2)

    def save(self, path: Path, prefix: str = "module.") -> Path:
        """Write net_rgb.pth; the published file was saved from a DataParallel module."""
        head = f"{prefix}intermediate_dncnn.itermediate_dncnn."
        torch.save({head + name.removeprefix("layers."): value for name, value in self.state_dict().items()}, path)
        return path
