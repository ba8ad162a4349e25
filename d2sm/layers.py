"""Phi at several layers at once, of one network or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2sm.features import Features, at_layers, split, wrap
from d2sm.frozen import FrozenWrapper
from d2sm.images import RangeCheck, check_pair
from d2sm.truncation import Truncated

_SEVERAL = "several modules are given as d2sm.layers.Layers([wrap(a), wrap(b)]), wrap being d2sm.features.wrap"


class Layers(FrozenWrapper):
    """(B, 3, H, W) RGB in [0, 1] to the maps (B, C, h, w) of several layers, in one pass of each network, float32.

    Args:
        network: "vgg19", "timm:resnet50", ... as in `d2sm.features`; or networks with their layers (`Features`).
        layers: names of its layers, in any order. Their maps come shallow to deep. With `Features`: the full names of
            their layers, in the order in which the maps come; none: all, shallow to deep.
        weights: as in `features.features`.

    Attributes:
        layers: name, stride and channels of each map.

    Raises:
        ValueError: unknown network or layer, no layer, weights that are missing or do not fit, or modules that are no
            `Features`.
    """

    def __init__(
        self, network: str | Sequence[Features], layers: Sequence[str] = (), *, weights: str | Path | None = None
    ) -> None:
        if isinstance(network, str):
            phis, names = [at_layers(network, layers, weights=weights)], []
        else:
            phis, names = list(network), list(layers)
        if wrong := [type(phi).__name__ for phi in phis if not isinstance(phi, Features)]:
            raise ValueError(f"network: {wrong[0]} is no Features; {_SEVERAL}")
        every = [layer for phi in phis for layer in phi.layers]
        place = {layer.name: index for index, layer in enumerate(every)}
        if not every:
            raise ValueError("layers: none; name one or more")
        if unknown := [name for name in names if name not in place]:
            raise ValueError(f"layers: {unknown[0]} is none of {', '.join(place)}")
        super().__init__(phis[0] if len(phis) == 1 else nn.ModuleList(phis))
        # By index: modules of one's own may have the same name.
        self.order = [place[name] for name in names] or list(range(len(every)))
        self.layers = tuple(every[index] for index in self.order)
        self.check_range = RangeCheck()

    def compile(self, *args: Any, **options: Any) -> None:
        """As `Features.compile`."""
        if not any(isinstance(module, Truncated) for module in self.modules()):
            super().compile(*args, **options)

    def forward_chunk(self, images: Tensor) -> list[Tensor]:
        phis = self.network if isinstance(self.network, nn.ModuleList) else [self.network]
        maps = [each for phi in phis for each in cast(Features, phi).maps(images)]
        return [maps[index].float() for index in self.order]

    @classmethod
    def of(
        cls,
        network: str | Sequence[str] | nn.Module,
        layers: Sequence[str] | None,
        *,
        default: Sequence[str],
        weights: str | Path | None = None,
    ) -> Layers:
        """Phi as an objective that compares layer by layer is given it.

        Args:
            network: "vgg19", of which `layers` are taken; "vgg19.conv5_4" or several such names; or a module, as in
                `phi_of`, for which `layers` and `weights` do not count.
            layers: None: `default`.

        Raises:
            ValueError: as `Layers` or `phi_of`; or layers beside a name that has one.
        """
        if isinstance(network, str) and not split(network)[1]:
            return cls(network, default if layers is None else layers, weights=weights)
        if layers is not None and not isinstance(network, nn.Module):
            raise ValueError(f"layers: {', '.join(layers)} beside {network!r}, which names its layer; leave layers out")
        found = phi_of(network, weights=weights)
        return found if isinstance(found, Layers) else cls([found])

    def of_both(self, restored: Tensor, clean: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The maps of both images, layer by layer; gradient flows through those of `restored` alone.

        Raises:
            ValueError: wrong or unequal shapes, another range (`RangeCheck`), or images smaller than a cell of the
                deepest layer.
        """
        check_pair(restored, clean)
        self.check_range(restored, clean)
        with torch.no_grad():
            of_clean = self(clean)
        return list(zip(self(restored), of_clean, strict=True))


def phi(names: Sequence[str], *, weights: Sequence[str | Path | None] = ()) -> Features | Layers:
    """Phi at named layers, such as "vgg19.conv5_4", each network built once: one layer's map, or a list of maps.

    Args:
        weights: of the network of each name, see `features.features`; none: the installed ones.

    Raises:
        ValueError: as `features.features`; a layer that is named twice, or two files for one network.
    """
    networks: dict[str, list[str]] = {}
    files: dict[str, str | Path | None] = {}
    for name, file in zip(names, weights or [None] * len(names), strict=True):
        network, layer = split(name)
        if layer in networks.setdefault(network, []):
            raise ValueError(f"features: {name} is named twice; name each layer once")
        if files.setdefault(network, file) != file:
            raise ValueError(f"weights: {files[network]} and {file} for {network}; give one file for each network")
        networks[network].append(layer)
    built = [at_layers(network, layers, weights=files[network]) for network, layers in networks.items()]
    return built[0] if len(names) == 1 else Layers(built, names)


def phi_of(features: str | Sequence[str] | nn.Module, *, weights: str | Path | None = None) -> Features | Layers:
    """Phi as a loss is given it: by one or several names, or as a module.

    Args:
        features: names as in `phi`; or a module, which is wrapped unless it is a `Features` or `Layers`.
        weights: of every named network, see `features.features`.

    Raises:
        ValueError: as `phi` or `features.wrap`; or several modules.
    """
    if isinstance(features, nn.Module):
        return features if isinstance(features, Layers) else wrap(features)
    names = [features] if isinstance(features, str) else list(features)
    if wrong := [type(each).__name__ for each in names if not isinstance(each, str)]:
        raise ValueError(f"features: {wrong[0]} is no name; {_SEVERAL}")
    return phi(names, weights=[weights] * len(names))
