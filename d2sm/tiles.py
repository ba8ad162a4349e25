"""How large a tile fits in the memory at hand: numbers in, a number out."""

from __future__ import annotations


def largest_tile(
    height: int, width: int, *, free: int, bytes_per_pixel: int, halo: int, stride: int, images: int = 1
) -> int | None:
    """The tile for `d2sm.inference.restore` whose windows, margins included, stay within `free` bytes.

    Args:
        height, width: of the image, in pixels.
        free: bytes that may be used.
        bytes_per_pixel: that the network needs at most for each pixel it is shown.
        halo: margin around a tile in pixels, the model's receptive field.
        stride: the model's, in pixels.
        images: that are restored at once.

    Returns:
        None where the whole image fits, else the side of the largest tile that does, a multiple of the stride. Never
        less than the halo, be there memory or not: at that size nine pixels are computed for one that is kept, and
        smaller tiles would save little more.

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
    margin = 2 * _ceiling(halo, stride)
    least = _ceiling(halo, stride) // stride
    low, high = least, max(least, _ceiling(max(height, width), stride) // stride)
    while low < high:  # the largest that fits; a window grows with its tile
        middle = (low + high + 1) // 2
        side = middle * stride + margin
        fits = min(side, height) * min(side, width) <= pixels
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * stride


def _ceiling(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
