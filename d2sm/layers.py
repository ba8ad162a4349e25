"""Phi at several layers at once, for the losses that compare maps and not their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from d2sm.features import Features, features, layer_names
from d2sm.frozen import FrozenWrapper


class Layers(FrozenWrapper):
    """(B, 3, H, W) RGB in [0, 1] -> the maps (B, C, h, w) of some layers, shallow to deep, in one pass, float32.

    Args:
        network: "vgg19", "efficientnet_lite0", ... as in `d2sm.features`.
        layers: names of its layers, in any order.
        weights: as in `features.features`.

    Raises:
        ValueError: unknown network or layer, none, or weights that are missing or do not fit.
    """

    def __init__(self, network: str, layers: Sequence[str], *, weights: str | Path | None = None) -> None:
        order = layer_names(network, layers)
        if not layers:
            raise ValueError(f"layers: none of {network}; name one or more, such as {order[-1]}")
        self.at = frozenset(map(order.index, layers))
        phi = features(f"{network}.{order[max(self.at)]}", weights=weights)
        for part in phi.modules():
            if isinstance(getattr(part, "inplace", None), bool):
                part.inplace = False  # type: ignore[assignment]  # else a ReLU writes into the map before it
        super().__init__(phi)

    def forward_chunk(self, images: Tensor) -> list[Tensor]:
        phi = cast(Features, self.network)
        maps, x = [], phi.normalised(images)
        for index, step in enumerate(cast(nn.Sequential, phi.net)):
            x = step(x)
            if index in self.at:
                maps.append(x.float())
        return maps
