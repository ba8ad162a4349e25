"""Image files: read strictly, written whole or not at all.

A photograph is a PNG or JPEG, read as (H, W, 3) uint8 RGB; a label map is a PNG with one 8-bit channel of Cityscapes
label ids. The format follows from the first bytes, not from the suffix. Pixels are taken as stored: colour profiles,
gamma and the EXIF orientation are not applied.

PNG is decoded with spng, which is as fast as any decoder at hand and the only one of them that survives damaged files:
imagecodecs' own png_decode and torchvision can end the process, and PIL accepts wrong checksums of pixels.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipelines.runtime import files
from pipelines.text import one_line

Kind = Literal["rgb", "labels"]
Pixels = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END, _JPEG_END = b"\0\0\0\0IEND\xaeB`\x82", b"\xff\xd9"
_MODES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_WANTED = {"rgb": "8-bit RGB", "labels": "8-bit grey"}
_LAST_LABEL_ID = 34  # Cityscapes has 0 to 33; some of its derivatives give the license plate 34
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_LAST_TRAIN_ID = len(_LABEL_IDS) - 1

TRAIN_IDS: Pixels = np.full(256, 255, np.uint8)
"""Train id 0..18 of every Cityscapes label id, 255 (ignored) for all others; shape (256,), read-only."""
TRAIN_IDS[list(_LABEL_IDS)] = np.arange(19, dtype=np.uint8)
TRAIN_IDS.setflags(write=False)


class ImageError(ValueError):
    """An image that cannot be used: one line with the file, what is wrong with it, and the remedy."""


class LabelError(ImageError):
    """A label map of another kind of labels: probably all of the data set's are, so it is no single bad image."""


class DataError(ValueError):
    """A data set that cannot be used: one line with the place, what is wrong with it, and the remedy."""


class _Header(NamedTuple):
    height: int
    width: int
    mode: str


def read_rgb(path: str | Path) -> Pixels:
    """Read an 8-bit RGB PNG or JPEG as (H, W, 3) uint8.

    Raises:
        ImageError: the file is missing, no image, truncated, damaged, 16-bit, grey, palette or with alpha.
    """
    return _read(Path(path), "rgb")


def read_labels(path: str | Path) -> Pixels:
    """Read a PNG of Cityscapes label ids as (H, W) uint8 train ids, 255 to be ignored.

    Raises:
        ImageError: as `read_rgb`, and for anything but a single 8-bit channel.
        LabelError: (an ImageError) values that are no label ids.
    """
    ids = _read(Path(path), "labels")
    _check_label_ids(ids, Path(path))
    return np.take(TRAIN_IDS, ids)


def _check_label_ids(ids: Pixels, path: Path) -> None:
    """Check that a label map holds label ids. 255 is accepted as void, as other tools write it, among label ids."""
    if ids.max(initial=0) <= _LAST_LABEL_ID:
        return
    values = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
    inside = values[values <= _LAST_LABEL_ID]
    foreign = values[(values > _LAST_LABEL_ID) & (values < 255)]
    remedy = "give the *_gtFine_labelIds.png of Cityscapes, or write label ids: road 7, car 26, void 0"
    if len(foreign):
        raise LabelError(f"{path}: holds the value {foreign[0]}, but label ids are 0 to 33; {remedy}")
    if len(inside) and inside[-1] <= _LAST_TRAIN_ID:
        raise LabelError(
            f"{path}: holds 255 and otherwise no value above {_LAST_TRAIN_ID}: these are train ids, not label ids, and "
            f"would be scored as other classes; {remedy}"
        )


def size_of(path: str | Path, *, kind: Kind | None = None) -> tuple[int, int]:
    """(H, W) from the header of an image file.

    Only a file whose last bytes are not the end of its format is decoded, to see whether it is truncated. Damage
    further inside shows when the file is read.

    Args:
        kind: check also that the file is one for `read_rgb` or for `read_labels`.

    Raises:
        ImageError: as `read_rgb` or `read_labels`.
    """
    path = Path(path)
    with _open(path) as file:
        header = _header(file, path)
        if kind:
            _check(header, kind, path)
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_PNG_END)))
        end = file.read()
    if end != _PNG_END and not end.endswith(_JPEG_END):
        _decode(path.read_bytes(), path)
    return header.height, header.width


def write_png(path: str | Path, array: NDArray[Any]) -> None:
    """Write (H, W, 3) uint8 RGB, or (H, W) uint8, as PNG; makes its folder.

    Raises:
        ImageError: an array of another type or shape.
        OSError: the file cannot be written; a former one stays as it was.
    """
    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise ImageError(f"{path}: cannot write {array.dtype} {array.shape} as PNG; give uint8 (H, W, 3) or (H, W)")
    data = imagecodecs.spng_encode(np.ascontiguousarray(array), level=3)  # a third of the default's time, 9 % larger
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, shared=True) as temporary:
        temporary.write_bytes(data)


def _read(path: Path, kind: Kind) -> Pixels:
    with _open(path) as file:
        data = file.read()
    _check(_header(io.BytesIO(data), path), kind, path)
    return _decode(data, path)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; correct the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); give a readable file") from None


def _check(header: _Header, kind: Kind, path: Path) -> None:
    """Check that an image has the mode that its kind needs."""
    if header.mode == _WANTED[kind]:
        return
    if kind == "rgb":
        remedy = _rgb_remedy(header.mode)
    else:
        remedy = "labels are 8-bit grey label ids, as in *_gtFine_labelIds.png (not _color, not _instanceIds)"
        if "palette" in header.mode:
            remedy += "; to keep a palette's indices: Image.fromarray(np.asarray(Image.open(f))).save(f) with PIL"
    raise ImageError(f"{path}: is {header.mode}, not {_WANTED[kind]}; {remedy}")


def _rgb_remedy(mode: str) -> str:
    if "16-bit" in mode:  # not with PIL, which would cut 16-bit grey off at 255 instead of scaling it
        return "convert it: `convert in.png -alpha off -depth 8 -type TrueColor PNG24:out.png`"
    return 'convert it: `convert in.png -alpha off -type TrueColor PNG24:out.png`, or PIL\'s `.convert("RGB")`'


def _header(file: BinaryIO, path: Path) -> _Header:
    """Size and mode of the image in a file."""
    start = file.read(33)
    if start.startswith(_SIGNATURE):
        if len(start) < 33:
            raise _truncated(path)
        length, chunk, width, height, depth, colour = struct.unpack(">I4sIIBB", start[8:26])
        (crc,) = struct.unpack(">I", start[29:33])
        if (length, chunk) != (13, b"IHDR") or crc != zlib.crc32(start[12:29]) or not width * height:
            raise _damaged(path, "its header is wrong")
        return _Header(height, width, f"{depth}-bit {_MODES.get(colour, 'unknown')}")
    if start.startswith(b"\xff\xd8\xff"):
        file.seek(0)
        with _jpeg(file, path) as image:
            width, height = image.size
            names = {"L": "8-bit grey", "RGB": "8-bit RGB"}
            return _Header(height, width, names.get(image.mode, f"JPEG {image.mode}"))
    what = "is empty" if not start else "is not a PNG or JPEG file"
    raise ImageError(f"{path}: {what}; replace the file or remove it")


def _decode(data: bytes, path: Path) -> Pixels:
    """The pixels of a whole file, as stored."""
    if not data.startswith(_SIGNATURE):
        # A global of PIL's that other libraries set; a truncated image would then be read, the rest of it grey.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with _jpeg(io.BytesIO(data), path) as image:
            return np.array(image)
    if b"tRNS" in _chunks(data, path) and data[25] == 2:  # colour type RGB
        raise ImageError(f"{path}: has a transparent colour (tRNS); {_rgb_remedy('RGB with alpha')}")
    try:
        pixels: Pixels = imagecodecs.spng_decode(data)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _damaged(path, _reason(error)) from None
    return pixels


def _chunks(data: bytes, path: Path) -> list[bytes]:
    """The kinds of a PNG's chunks, after a check of their checksums: decoders stop at the last pixel."""
    view, at, kind = memoryview(data), len(_SIGNATURE), b""
    kinds = []
    while kind != b"IEND":
        if at + 12 > len(data):
            raise _truncated(path)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise _truncated(path)
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _damaged(path, f"wrong checksum at byte {at}")
        kinds.append(kind)
        at = end + 4
    return kinds


@contextmanager
def _jpeg(file: BinaryIO, path: Path) -> Iterator[Image.Image]:
    """A JPEG opened by PIL, whose errors become an ImageError."""
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if "truncated" in str(error).lower():
            raise _truncated(path) from None
        raise _damaged(path, _reason(error)) from None


def _reason(error: BaseException) -> str:
    """A decoder's message without the address of the file object."""
    return one_line(str(error).split(" <_io")[0].splitlines()[0]) if str(error) else type(error).__name__


def _truncated(path: Path) -> ImageError:
    return ImageError(f"{path}: is truncated (the file ends too early); copy or download it again")


def _damaged(path: Path, reason: str) -> ImageError:
    return ImageError(f"{path}: is damaged ({reason}); copy or download it again")
