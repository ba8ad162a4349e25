"""The largest tile that fits into memory: a pure function of sizes."""

from __future__ import annotations


def largest_tile(
    height: int, width: int, *, free: int, bytes_per_pixel: int, halo: int, stride: int, images: int = 1
) -> int | None:
    """The largest tile for `d2sm.inference.restore` whose windows, margins included, stay within `free` bytes.

    Args:
        height, width: of the image, in pixels.
        free: bytes that may be used.
        bytes_per_pixel: peak memory of the network for each pixel of a window.
        halo: margin around a tile in pixels, the model's receptive field.
        stride: the model's, in pixels.
        images: restored at the same time.

    Returns:
        None if the whole image fits, else the side of the largest tile that fits, a multiple of the stride. It is never
        smaller than the halo, whether or not that fits: at that size nine pixels are computed for each one kept, and
        smaller tiles would save little more memory.

    Raises:
        ValueError: a size, a number of bytes, halo or stride below 1 (`free` may be 0).
    """
    positive = {"height": height, "width": width, "bytes_per_pixel": bytes_per_pixel, "halo": halo, "stride": stride}
    for name, value in {**positive, "images": images, "free": free + 1}.items():
        if value < 1:
            raise ValueError(f"largest_tile: {name}={value - (name == 'free')}: must be positive")
    pixels = free // (bytes_per_pixel * images)
    if height * width <= pixels:
        return None
    margin = 2 * round_up(halo, stride)
    # Binary search over multiples of the stride: a window grows with its tile.
    smallest = round_up(halo, stride) // stride
    low, high = smallest, max(smallest, round_up(max(height, width), stride) // stride)
    while low < high:
        middle = (low + high + 1) // 2
        side = middle * stride + margin
        fits = min(side, height) * min(side, width) <= pixels
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * stride


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below `value`."""
    return -(-value // multiple) * multiple
