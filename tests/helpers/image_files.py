"""Image files made by hand, of kinds that no library writes, and a disk on which they do not fit."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(
    pixels: np.ndarray, *, depth: int = 8, colour: int = 2, interlaced: bool = False, extra: bytes = b""
) -> bytes:
    """A PNG by hand, in several IDAT chunks: what Pillow cannot write (16-bit RGB, Adam7, tRNS) included."""
    big = pixels.astype(">u2") if depth == 16 else pixels
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    rows = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in big[y::dy, x::dx]]
    packed = zlib.compress(b"".join(rows))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, int(interlaced))
    body = b"".join(chunk(b"IDAT", packed[at : at + 1000]) for at in range(0, len(packed), 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def tiff_of(pixels: bytes, height: int, width: int, **tags: int) -> bytes:
    """An uncompressed TIFF of one strip by hand. `tags`: t258=4 sets the tag 258; without others it is 8-bit grey."""
    found = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height, 279: len(pixels)}
    found |= {int(name.removeprefix("t")): value for name, value in tags.items()}
    found[273] = 8 + 2 + 12 * (len(found) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(found.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(found)) + entries + bytes(4) + pixels


def put(folder: Path, data: bytes, name: str = "street.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """A file cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
