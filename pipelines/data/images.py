"""Pictures on disk: read strictly, written whole or not at all.

A picture is uint8 RGB (H, W, 3), PNG or JPEG; a label map is one 8-bit channel of Cityscapes label ids, PNG.
What a file is follows from its first bytes, not from its suffix. Pixels are taken as stored: colour profiles,
gamma and the EXIF orientation are not applied.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipelines.runtime import files

# PNG decoder: CPU ms a frame, one thread, median of 5 x 9 real Cityscapes frames of 2048x1024,
# measured on 2 cores of an AMD EPYC, imagecodecs 2026.3.6, Pillow 13.0.0, torchvision 0.29.2:
#   PIL 59.2 (ratio 1) | torchvision 51.7 (1.15) | imagecodecs png 33.7 (1.76) | imagecodecs spng 33.3 (1.77)
# All four give the same pixels. Of the two fast ones spng is the safe one: imagecodecs.png_decode loses a
# reference to None with every error, so that Python aborts after some thousand bad files. torchvision crashes
# the process (SIGSEGV) on a bad CRC, and PIL lets a bad IDAT CRC pass. Of 20,000 randomly damaged files spng
# refused 19,991 and read the rest right.

Kind = Literal["rgb", "labels"]
Pixels = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_MODES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_WANTED = {"rgb": "8-bit RGB", "labels": "8-bit grey"}
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

TRAIN_IDS: Pixels = np.full(256, 255, np.uint8)
"""Train id 0..18 of every Cityscapes label id, 255 (ignored) for all others; shape (256,), read-only."""
TRAIN_IDS[list(_LABEL_IDS)] = np.arange(19, dtype=np.uint8)
TRAIN_IDS.setflags(write=False)


ENDINGS = (".png", ".jpg", ".jpeg")  # of the files taken for images


class ImageError(ValueError):
    """An image that cannot be used: one line with the file, what is wrong with it, and the remedy."""


class DataError(ValueError):
    """A data set that cannot be used: one line with the place, what is wrong with it, and the remedy."""


class _Header(NamedTuple):
    height: int
    width: int
    mode: str


def read_rgb(path: str | Path) -> Pixels:
    """The picture as uint8 (H, W, 3), RGB, from an 8-bit RGB PNG or JPEG.

    Raises ImageError for a file that is missing, no picture, cut short or damaged, 16-bit, grey, palette
    or with alpha.
    """
    return _read(Path(path), "rgb")


def read_labels(path: str | Path) -> Pixels:
    """The label map as uint8 (H, W) of train ids, 255 to be ignored, from a PNG of Cityscapes label ids.

    Raises ImageError as `read_rgb` does, and for anything but a single 8-bit channel.
    """
    return np.take(TRAIN_IDS, _read(Path(path), "labels"))


def size_of(path: str | Path, *, kind: Kind | None = None) -> tuple[int, int]:
    """(H, W) from the header; with `kind`, checks also that the file is one for `read_rgb` or `read_labels`.

    A file that does not end as its format does is decoded to see whether it is cut short. Damage further in
    shows only when the file is read. Raises ImageError.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(file, path)
        if kind:
            _check(header, kind, path)
        whole = _ends_well(file)
    if not whole:
        _decode(path.read_bytes(), path)
    return header.height, header.width


def write_png(path: str | Path, array: NDArray[Any]) -> None:
    """Write uint8 (H, W, 3) RGB or (H, W) as PNG, with its folder; a failure leaves the former file."""
    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise ImageError(f"{path}: cannot write {array.dtype} {array.shape} as PNG; give uint8 (H, W, 3) or (H, W)")
    # Level 3: 0.30 s a 2048x1024 frame where PIL's default takes 0.91 s, 9 % more bytes (machine as above).
    data = imagecodecs.spng_encode(np.ascontiguousarray(array), level=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, shared=True) as temporary:
        temporary.write_bytes(data)


def _read(path: Path, kind: Kind) -> Pixels:
    with _opened(path) as file:
        data = file.read()
    _check(_header(io.BytesIO(data), path), kind, path)
    return _decode(data, path)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; correct the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); give a readable file") from None


def _check(header: _Header, kind: Kind, path: Path) -> None:
    if header.mode != _WANTED[kind]:
        raise ImageError(f"{path}: is {header.mode}, not {_WANTED[kind]}; {_remedy(kind, header.mode)}")


def _remedy(kind: Kind, mode: str) -> str:
    if kind == "labels":
        line = "labels are 8-bit grey label ids, as in *_gtFine_labelIds.png (not _color, not _instanceIds)"
        keep = "; to keep the indices of a palette: Image.fromarray(np.asarray(Image.open(f))).save(f) with PIL"
        return line + keep * ("palette" in mode)
    if "16-bit" in mode:  # PIL would cut 16-bit grey off at 255 rather than scale it
        return "convert it: `convert in.png -alpha off -depth 8 -type TrueColor PNG24:out.png`"
    return 'convert it: `convert in.png -alpha off -type TrueColor PNG24:out.png`, or PIL\'s `.convert("RGB")`'


def _header(file: BinaryIO, path: Path) -> _Header:
    start = file.read(33)
    if start.startswith(_SIGNATURE):
        return _png_header(start, path)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg_header(file, path)
    what = "is empty" if not start else "is not a PNG or JPEG file"
    raise ImageError(f"{path}: {what}; replace the file or remove it")


def _png_header(start: bytes, path: Path) -> _Header:
    if len(start) < 33:
        raise _truncated(path)
    length, kind, width, height, depth, colour = struct.unpack(">I4sIIBB", start[8:26])
    (crc,) = struct.unpack(">I", start[29:33])
    if (length, kind) != (13, b"IHDR") or crc != zlib.crc32(start[12:29]) or not width * height:
        raise _damaged(path, "its header is wrong")
    return _Header(height, width, f"{depth}-bit {_MODES.get(colour, 'unknown')}")


def _jpeg_header(file: BinaryIO, path: Path) -> _Header:
    file.seek(0)
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            width, height = image.size
            names = {"L": "8-bit grey", "RGB": "8-bit RGB"}
            return _Header(height, width, names.get(image.mode, f"JPEG {image.mode}"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _jpeg_error(error, path) from None


def _ends_well(file: BinaryIO) -> bool:
    """Whether the last bytes are those of a whole file: an IEND chunk, or JPEG's end of image."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_IEND)))
    tail = file.read()
    return tail == _IEND or tail.endswith(b"\xff\xd9")


def _decode(data: bytes, path: Path) -> Pixels:
    return _decode_png(data, path) if data.startswith(_SIGNATURE) else _decode_jpeg(data, path)


def _decode_png(data: bytes, path: Path) -> Pixels:
    kinds = list(_chunks(data, path))
    if b"tRNS" in kinds and data[25] == 2:  # colour type RGB
        raise ImageError(f"{path}: has a transparent colour (tRNS); {_remedy('rgb', 'RGB with alpha')}")
    try:
        pixels: Pixels = imagecodecs.spng_decode(data)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _damaged(path, _reason(error)) from None
    return pixels


def _chunks(data: bytes, path: Path) -> Iterator[bytes]:
    """The kinds of a PNG's chunks up to IEND, CRCs checked: decoders stop at the last row and miss the rest.

    0.6 ms for a frame of 2.2 MB.
    """
    view, at, kind = memoryview(data), len(_SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise _truncated(path)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise _truncated(path)
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _damaged(path, f"wrong checksum at byte {at}")
        yield kind
        at = end + 4


def _decode_jpeg(data: bytes, path: Path) -> Pixels:
    # A global of PIL's that other libraries set: a truncated picture would then pass, the rest of it grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _jpeg_error(error, path) from None


def _jpeg_error(error: Exception, path: Path) -> ImageError:
    return _truncated(path) if "truncated" in str(error).lower() else _damaged(path, _reason(error))


def _reason(error: BaseException) -> str:
    return str(error).split(" <_io")[0].splitlines()[0] if str(error) else type(error).__name__


def _truncated(path: Path) -> ImageError:
    return ImageError(f"{path}: is truncated (the file ends too early); copy or download it again")


def _damaged(path: Path, reason: str) -> ImageError:
    return ImageError(f"{path}: is damaged ({reason}); copy or download it again")
