"""A photograph as evaluation restores it: the clean tensor, its noisy versions, and the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2sm.noise import seed_of
from pipelines.config import PAIR, Config
from pipelines.data.images import ImageError
from pipelines.data.items import read


class Noisy(NamedTuple):
    """A noisy version of a photograph.

    Attributes:
        level: name of its level in results: "25", "jpeg10", or "pair" for a photographed noisy image.
        sigma: of its noise, which a network is told, in units of 0..255; 0 without noise.
        image: (1, 3, H, W), not clipped.
    """

    level: str
    sigma: float
    image: Tensor


@dataclass(frozen=True)
class Sample:
    """An item of the evaluation split as tensors on the CPU.

    Attributes:
        name: of the item.
        clean: (1, 3, H, W) float32 in [0, 1].
        noisy: one for each level (`Config.levels`), or for a pair the photographed one alone.
        label: (H, W) uint8 train ids, 255 to be ignored; None if there is no label map.
        digests: of the clean image and of each noisy one (`known.digest`); empty where nobody asked.
    """

    name: str
    clean: Tensor
    noisy: list[Noisy]
    label: Tensor | None = None
    digests: tuple[str, ...] = ()

    @property
    def shown(self) -> Noisy:
        """The version that pictures and figures show: the middle level."""
        return self.noisy[len(self.noisy) // 2]


def load(config: Config, item: Mapping[str, Any], *, labels: bool = False) -> Sample:
    """Read an item and degrade it at each level, seeded by the item's name.

    Args:
        item: a row of the index.
        labels: whether to read its label map.

    Raises:
        ImageError, DataError: an image that cannot be read (see `items.read`).
    """
    photograph = read(item, labels=labels, label_set=config.data.labels)
    name, clean = item["name"], tensor(photograph.clean)
    if photograph.noisy is not None:
        noisy = [Noisy(PAIR, config.noise.sigma[0], tensor(photograph.noisy))]
    else:
        seeds = [seed_of(name)]
        noisy = [
            Noisy(chain.name, chain.sigma, chain.degraded(clean, levels=torch.tensor([chain.level]), seeds=seeds))
            for chain in config.levels
        ]
    label = None if photograph.label is None else torch.from_numpy(photograph.label)
    return Sample(name, clean, noisy, label)


def usable(config: Config, item: Mapping[str, Any]) -> Sample | None:
    """As `load`, without labels; None for an image that cannot be read and is to be left out (data.bad_images=skip)."""
    try:
        return load(config, item)
    except ImageError:
        if config.data.bad_images == "stop":
            raise
        return None


def tensor(pixels: NDArray[Any]) -> Tensor:
    """(H, W, 3) RGB or (H, W) grey, uint8 or uint16 -> (1, 3, H, W) float32 in [0, 1]; grey is repeated three times."""
    most = np.iinfo(pixels.dtype).max
    planes = torch.from_numpy(pixels)
    planes = planes.permute(2, 0, 1) if planes.dim() == 3 else planes.expand(3, -1, -1)
    return planes[None].float() / most


def pixels(image: Tensor, like: NDArray[Any] | None = None) -> NDArray[Any]:
    """(1, 3, H, W) in [0, 1] -> pixels; values outside [0, 1] are clamped.

    Args:
        like: pixels whose type the result has, and which are grey or RGB; the mean of the channels is the grey.
            None: (H, W, 3) uint8.
    """
    planes = image[0]
    if like is None or like.dtype == np.uint8:
        most, kind = 255, torch.uint8
    else:
        most, kind = np.iinfo(like.dtype).max, torch.uint16
    if like is not None and like.ndim == 2:
        array: NDArray[Any] = (planes.mean(0).clamp(0, 1) * most).round().to(kind).numpy()
        return array
    array = (planes.clamp(0, 1) * most).round().to(kind).permute(1, 2, 0).numpy()
    return array
