"""Image files as data: read strictly, written whole or not at all.

A photograph is read as (H, W, 3) uint8 RGB, and refused if it is anything else; a label map is a PNG with one 8-bit
channel of Cityscapes label ids. Pixels are taken as stored: colour profiles, gamma and the EXIF orientation are not
applied.
`photofile` reads photographs of all kinds, for `denoise`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from d2sm.label_names import LABEL_IDS
from pipelines.data import formats
from pipelines.data.formats import Header, ImageError
from pipelines.data.labels import CITYSCAPES, LAST_LABEL_ID, LabelError, label_set
from pipelines.runtime import files

__all__ = [
    "TRAIN_IDS", "DataError", "ImageError", "Kind", "LabelError", "Pixels", "read_labels", "read_rgb", "size_of",
    "write_png",
]  # fmt: skip

Kind = Literal["rgb", "labels"]
Pixels = NDArray[np.uint8]

_WANTED = {"rgb": "8-bit RGB", "labels": "8-bit grey"}
_LAST_TRAIN_ID = len(LABEL_IDS) - 1

TRAIN_IDS: Pixels = np.full(256, 255, np.uint8)
"""Train id 0..18 of every Cityscapes label id, 255 (ignored) for all others; shape (256,), read-only."""
TRAIN_IDS[list(LABEL_IDS)] = np.arange(19, dtype=np.uint8)
TRAIN_IDS.setflags(write=False)


class DataError(ValueError):
    """A data set that cannot be used: one line with the place, what is wrong with it, and the remedy."""


def read_rgb(path: str | Path) -> Pixels:
    """Read an 8-bit RGB image (PNG, JPEG, TIFF, WebP or BMP) as (H, W, 3) uint8.

    Raises:
        ImageError: the file is missing, no image, truncated, damaged, 16-bit, grey, palette or with alpha.
    """
    return _read(Path(path), "rgb")


def read_labels(path: str | Path, labels: str = CITYSCAPES) -> Pixels:
    """Read a label image as (H, W) uint8 train ids, 255 to be ignored.

    Args:
        labels: the label set, see `labels.label_set`.

    Raises:
        ImageError: as `read_rgb`, and for anything but a single 8-bit channel, or RGB for a set of colours.
        LabelError: (an ImageError) values that are not the set's.
        ConfigError: no such label set.
    """
    known = label_set(labels)
    image = _read(Path(path), "labels" if known.images == "ids" else "rgb")
    if known.name != CITYSCAPES:
        return known.train_ids(image, Path(path))
    _check_label_ids(image, Path(path))
    return np.take(TRAIN_IDS, image)


def _check_label_ids(ids: Pixels, path: Path) -> None:
    """Check that a label map holds label ids. 255 is accepted as void, as other tools write it, among label ids."""
    if ids.max(initial=0) <= LAST_LABEL_ID:
        return
    values = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
    inside = values[values <= LAST_LABEL_ID]
    foreign = values[(values > LAST_LABEL_ID) & (values < 255)]
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
    with formats.open_file(path) as file:
        header = formats.read_header(file, path)
        if kind:
            _check(header, kind, path)
        formats.check_end(file, header, path)
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
    with formats.open_file(path) as file:
        header = formats.read_header(file, path)
        _check(header, kind, path)
        file.seek(0)
        data = formats.read_bytes(file, header, path)
    chunks = formats.read_chunks(data, path) if header.format == "PNG" else {}
    if b"tRNS" in chunks and header.colour == "RGB":
        raise ImageError(f"{path}: has a transparent colour (tRNS); {_rgb_remedy('RGB with alpha')}")
    pixels: Pixels = formats.decode(data, header, path, chunks=chunks)
    channels = (3,) if kind == "rgb" else ()
    if pixels.shape != (header.height, header.width, *channels):  # a WebP file's flags may deny its alpha
        raise formats.damaged(path, f"its header is of {header.mode}, its pixels are {pixels.shape}")
    return pixels


def _check(header: Header, kind: Kind, path: Path) -> None:
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
