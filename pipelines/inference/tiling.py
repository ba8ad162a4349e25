"""The tiles in which an image is restored: as asked for, or as large as the free memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from d2sm.inference import restore, windows
from d2sm.models.base import label_of
from d2sm.tiles import largest_tile, round_up
from pipelines.inference import samples
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
        asked: a side in pixels, raised to `smallest_tile`; None for whole images; or "auto": whole images if they fit
            into half of the free memory, else the largest tile that does. The choice changes the result by float32
            rounding only.
        sharing: number of processes that restore on this machine, or on this GPU, at once.

    Returns:
        The side of the tiles in pixels; None: whole images.

    Raises:
        ValueError: a side below 1.
    """
    images, _, height, width = noisy.shape
    return tile_for_size(model, (height, width), asked, images=images, sharing=sharing)


def tile_for_size(
    model: nn.Module, size: tuple[int, int], asked: Tile, *, images: int = 1, sharing: int = 1
) -> int | None:
    """`tile_for`, by the height and width of the images."""
    if asked is None:
        return None
    needs = getattr(model, "bytes_per_pixel", None) if asked == "auto" else None
    free = 0 if needs is None else _free(model, sharing)
    if needs is not None and images * size[0] * size[1] * needs <= free:
        return None
    if not has_tiles(model):
        return None
    if needs is None:
        side = UNSTATED if asked == "auto" else asked
        if side < 1:
            raise ValueError(f"tile={side}: needs a side in pixels, None for whole images, or auto")
        return max(side, smallest_tile(model))
    reach, stride = model.receptive_field, model.stride
    assert isinstance(reach, int) and isinstance(stride, int)
    return largest_tile(*size, free=free, bytes_per_pixel=needs, halo=reach, stride=stride, images=images)


def needs_tiles(model: nn.Module, size: tuple[int, int], *, sharing: int = 1) -> bool:
    """Whether an image of this size is known not to fit into the memory that `tile_for_size` keeps to."""
    needs = getattr(model, "bytes_per_pixel", None)
    return needs is not None and size[0] * size[1] * needs > _free(model, sharing)


def _free(model: nn.Module, sharing: int) -> int:
    return int(SHARE * free_bytes(next(model.parameters()).device)) // sharing


def has_tiles(model: nn.Module) -> bool:
    """Whether a model can be restored in tiles: its receptive field is known. To measure it may take seconds."""
    return isinstance(getattr(model, "receptive_field", None), int)


def without_tiles(model: nn.Module) -> str:
    """The line that says why a model restores images whole."""
    return (
        f"restored whole, without tiles: the receptive field of {label_of(model)} is not known; if it has one, state "
        "it in the network's attribute receptive_field, in pixels"
    )


def smallest_tile(model: nn.Module) -> int:
    """The receptive field, in whole strides. There nine pixels are computed for each one kept; below, many more."""
    reach, stride = getattr(model, "receptive_field", 1), getattr(model, "stride", 1)
    return round_up(reach, stride)


def restore_pixels(
    model: nn.Module,
    image: NDArray[Any],
    sigma: float | None,
    *,
    tile: int | None,
    noisy: Tensor | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[Any]:
    """Restore an image that is held as integers. In tiles, only a tile at a time takes the memory of floating point.

    Args:
        image: (H, W, 3) RGB or (H, W) grey, uint8 or uint16.
        sigma: noise level in units of 0..255; None for a blind model.
        tile: side of the tiles; None: the image as a whole.
        noisy: (1, 3, H, W) to be restored in place of the image.
        progress: called after each tile with the number of tiles that are done, and of all.

    Returns:
        The restored image, of the shape and type of `image`.

    Raises:
        FloatingPointError: the model gave NaN or infinite values, which integers cannot hold.
    """

    def part(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        if noisy is not None:
            return noisy[..., slice(*rows), slice(*columns)]
        return samples.tensor(image[slice(*rows), slice(*columns)])

    def pixels_of(rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
        piece = restore(model, part(rows, columns), sigma)
        if not bool(piece.isfinite().all()):
            raise FloatingPointError("its result is not finite (NaN or infinite)")
        return samples.pixels(piece, like=image)

    height, width = image.shape[:2]
    if tile is None:
        restored = pixels_of((0, height), (0, width))
        progress(1, 1)
        return restored
    tiles = list(windows(model, (height, width), tile))
    restored = np.empty_like(image)
    for done, ((rows, columns), (window_rows, window_columns)) in enumerate(tiles, start=1):
        piece = pixels_of(window_rows, window_columns)
        top, left = rows[0] - window_rows[0], columns[0] - window_columns[0]
        kept = piece[top : top + rows[1] - rows[0], left : left + columns[1] - columns[0]]
        restored[slice(*rows), slice(*columns)] = kept
        progress(done, len(tiles))
    return restored
