"""In which tiles an image is restored: those asked for, or as large as the memory at hand allows."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from d2sm.tiles import largest_tile
from pipelines.runtime.memory import free_bytes

Tile = int | Literal["auto"] | None

# Of the memory at hand. The rest is for what is not the network's: images read ahead, other processes' next ones, and
# the allocator, which held up to 1.4 times the bytes a network had (FFDNet, CBDNet and SADNet, resident memory).
SHARE = 0.5
UNSTATED = 512  # the tile of a network that does not say what it needs; fits anywhere


def tile_for(model: nn.Module, noisy: Tensor, asked: Tile, *, sharing: int = 1) -> int | None:
    """The tile for `d2sm.inference.restore`.

    Args:
        model: a denoiser on the device where it will run; `bytes_per_pixel` says what it needs there.
        noisy: (B, 3, H, W), the images.
        asked: a side in pixels, None for the whole image, or "auto": whole where that fits in half of the memory that
            is free now, else the largest tile that does. The choice changes nothing but float32 rounding.
        sharing: processes that restore on this machine, or on this GPU, at once.
    """
    if asked != "auto":
        return asked
    needs = getattr(model, "bytes_per_pixel", None)
    if needs is None:
        return UNSTATED
    images, _, height, width = noisy.shape
    free = int(SHARE * free_bytes(next(model.parameters()).device)) // sharing
    reach, stride = model.receptive_field, model.stride
    assert isinstance(reach, int) and isinstance(stride, int)
    return largest_tile(height, width, free=free, bytes_per_pixel=needs, halo=reach, stride=stride, images=images)
