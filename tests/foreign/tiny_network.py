"""Networks of a user's own, named in configurations as module:callable. They import torch alone."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn


class TinyNetwork(nn.Module):
    """Told the noise level. It halves the resolution, so it takes even sides only, and views its maps."""

    def __init__(self, width: int = 8, scale: float = 255.0) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Conv2d(4, width, 2, stride=2)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, 3, 2, stride=2)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        level = (sigma / self.scale).view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        maps = self.middle(self.down(torch.cat([noisy, level], 1)).relu()).relu()
        maps = maps.view(maps.shape[0], maps.shape[1], -1).view_as(maps)  # fails in channels_last order
        restored: Tensor = noisy - self.up(maps)
        return restored


def blind(width: int = 8) -> nn.Module:
    """A blind network of one function, with weights that start at zero."""
    network = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))
    nn.init.zeros_(network[2].weight)
    return network


def dropout() -> nn.Module:
    """A blind network that is random in training mode."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(8, 3, 3, padding=1))


def normalised(norm: str = "BatchNorm2d") -> nn.Module:
    """A blind network with one of torch's normalisations."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)) if norm == "spectral" else getattr(nn, norm)(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


class Tied(nn.Module):
    """One convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first

    def forward(self, noisy: Tensor) -> Tensor:
        restored: Tensor = self.second(self.first(noisy))
        return restored


class Whole(nn.Module):
    """Every output pixel depends on the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy + self.layer(noisy.mean((2, 3), keepdim=True))


class Backbone(nn.Module):
    """The first part of `Nested`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        maps: Tensor = self.last(self.body(noisy).relu())
        return maps


class Nested(nn.Module):
    """A part of it is called network, as in wrappers, and has a part of the name of one of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Backbone()
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        restored: Tensor = noisy - self.last(self.network(noisy))
        return restored


class Forgetful(nn.Conv2d):
    """Its state dict lacks its bias."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}bias"]


class Halved(nn.Module):
    """It changes the size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 2, stride=2)

    def forward(self, noisy: Tensor) -> Tensor:
        restored: Tensor = self.layer(noisy)
        return restored


class Infinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy * self.weight / 0


class Detached(Infinite):
    def forward(self, noisy: Tensor) -> Tensor:
        return noisy * self.weight.detach()


class Double(Infinite):
    def forward(self, noisy: Tensor) -> Tensor:
        return noisy.double() * self.weight


class Spare(Infinite):
    """A weight that takes no part in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy * self.weight


class Unseeded(Infinite):
    """It drops its layer at random, but not at torch's random."""

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy * self.weight * (1 + random.random())


class Three(Infinite):
    def forward(self, noisy: Tensor, sigma: Tensor, mask: Tensor) -> Tensor:
        return noisy * self.weight


class Weightless(nn.Module):
    def forward(self, noisy: Tensor) -> Tensor:
        return noisy


def fails() -> nn.Module:
    raise RuntimeError("no such luck\nsecond line")


NUMBER = 3
