"""Phi at several layers at once, for the objectives that compare feature maps and not their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from d2sm.features import Features, features, layer_names
from d2sm.frozen import FrozenWrapper
from d2sm.images import check_pair


class Layers(FrozenWrapper):
    """(B, 3, H, W) RGB in [0, 1] to the maps (B, C, h, w) of several layers, shallow to deep, in one pass, float32.

    Args:
        network: "vgg19", "efficientnet_lite0", ... as in `d2sm.features`.
        layers: names of its layers, in any order.
        weights: as in `features.features`.

    Raises:
        ValueError: unknown network or layer, no layer, or weights that are missing or do not fit.
    """

    def __init__(self, network: str, layers: Sequence[str], *, weights: str | Path | None = None) -> None:
        order = layer_names(network, layers)
        if not layers:
            raise ValueError(f"layers: none of {network}; name one or more, such as {order[-1]}")
        self.indices = frozenset(map(order.index, layers))
        phi = features(f"{network}.{order[max(self.indices)]}", weights=weights)
        for module in phi.modules():
            if isinstance(getattr(module, "inplace", None), bool):
                # An in-place ReLU would overwrite the map of the layer before it.
                module.inplace = False  # type: ignore[assignment]
        super().__init__(phi)

    def forward_chunk(self, images: Tensor) -> list[Tensor]:
        phi = cast(Features, self.network)
        maps, x = [], phi.normalised(images)
        for index, layer in enumerate(cast(nn.Sequential, phi.net)):
            x = layer(x)
            if index in self.indices:
                maps.append(x.float())
        return maps

    def of_both(self, restored: Tensor, clean: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The maps of both images, layer by layer; gradient flows through those of `restored` alone.

        Raises:
            ValueError: wrong or unequal shapes, or images smaller than a cell of the deepest layer.
        """
        check_pair(restored, clean)
        with torch.no_grad():
            of_clean = self(clean)
        return list(zip(self(restored), of_clean, strict=True))
