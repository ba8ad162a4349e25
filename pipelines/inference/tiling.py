"""The tiles in which an image is restored: as asked for, or as large as the free memory allows."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from d2sm.tiles import largest_tile
from pipelines.runtime.memory import free_bytes

Tile = int | Literal["auto"] | None

# Share of the free memory for the network. The rest is for images that are read ahead, for what other processes are
# about to take, and for the allocator, which holds more than the network has asked for.
SHARE = 0.5
UNSTATED = 512  # side of the tiles for a network without `bytes_per_pixel`; fits into any memory


def tile_for(model: nn.Module, noisy: Tensor, asked: Tile, *, sharing: int = 1) -> int | None:
    """Choose the tile for `d2sm.inference.restore`.

    Args:
        model: a denoiser on the device where it will run; `bytes_per_pixel` says how much memory it needs there.
        noisy: (B, 3, H, W), the images.
        asked: a side in pixels; None for whole images; or "auto": whole images if they fit into half of the free
            memory, else the largest tile that does. The choice changes the result by float32 rounding only.
        sharing: number of processes that restore on this machine, or on this GPU, at once.

    Returns:
        The side of the tiles in pixels; None: whole images.
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
