"""Shards of a prepared data set: Arrow files of plain pixels, memory-mapped, of which a crop reads its own rows.

One record batch a photograph: clean image, label map of train ids and noisy partner, whichever there are, row after row
and uncompressed; the checksum of every `BAND` rows; and how many bytes each source file had. A place in a shard is
written `<file>#<column>/<row>` and stands where the path of a PNG would.

Milliseconds an image of 2048 x 1024 for one crop of 128 x 128, and for four, from a warm page cache on a busy core of
an AMD EPYC: plain 0.4 and 0.9, lz4 4.2 and more (18 % less disk), zstd 9.4 and more (35 % less); in tiles of 256, plain
0.2 and 0.6, lz4 0.4 and 1.4 (24 % less). PNG takes 36, the noise of a crop 0.6. So tiles save nothing that would be
felt, and whole images need no crop put together. The checksums are in addition, 0.05 ms a MB that is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pyarrow as pa

from pipelines.data.images import DataError, Pixels, read_labels, read_rgb
from pipelines.runtime import files
from pipelines.text import one_line

BAND = 32  # rows under one checksum
Column = Literal["image", "label", "noisy"]
COLUMNS: tuple[Column, ...] = ("image", "label", "noisy")
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        *(field for c in COLUMNS for field in ((c, pa.binary()), (f"{c}_checks", pa.list_(pa.uint32())))),
        *((f"{c}_bytes", pa.int64()) for c in COLUMNS),
    ]
)
_PLACE = re.compile(r"(.+\.arrow)#(image|label|noisy)/(\d+)")
AGAIN = "run `d2sm prepare` again, which writes anew what is missing or damaged"


class StoredImage:
    """An image in a shard, sliced like an array: only the rows of the slice are read, and their checksums checked."""

    def __init__(self, pixels: Pixels, checks: Pixels, where: str) -> None:
        self.pixels, self.checks, self.where = pixels, checks, where
        self.shape = pixels.shape

    def __getitem__(self, window: tuple[slice, slice]) -> Pixels:
        first, last, _ = window[0].indices(self.shape[0])
        for band in range(first // BAND, -(-last // BAND)):
            if _check(self.pixels, band) != self.checks[band]:
                raise DataError(f"{self.where}: rows {band * BAND} onwards are damaged (wrong checksum); {AGAIN}")
        return self.pixels[window]


def place(path: str | Path, column: str, row: int) -> str:
    """How a picture in a shard is named."""
    return f"{path}#{column}/{row}"


def open_stored(where: str) -> StoredImage | None:
    """The image at a place in a shard; None if `where` is the path of an image file.

    Raises:
        DataError: the shard is missing or damaged.
    """
    found = _PLACE.fullmatch(where)
    return _stored(found[1], found[2], int(found[3])) if found else None


def source_bytes(where: str) -> int:
    """Size in bytes of the picture's file, or of the one it was prepared from. Raises OSError or DataError."""
    found = _PLACE.fullmatch(where)
    return int(_batch(found[1], int(found[3]))[f"{found[2]}_bytes"][0].as_py()) if found else os.stat(where).st_size


def write(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write a shard, whole or not at all, holding one photograph in memory at a time.

    Args:
        items: rows of an index: name, height, width and the files.

    Raises:
        ImageError: a file cannot be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        files.replacing(path, shared=True, sync=True) as temporary,
        temporary.open("wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        for item in items:
            writer.write_batch(pa.RecordBatch.from_pylist([_row(item)], schema=SCHEMA))


def is_whole(path: Path, items: list[dict[str, Any]]) -> bool:
    """Whether a shard holds these very photographs, undamaged."""
    if not path.is_file():
        return False
    try:
        if _reader(str(path), *_state(str(path))).num_record_batches != len(items):
            return False
        for number, item in enumerate(items):
            batch = _batch(str(path), number)
            if any(batch[name][0].as_py() != item[name] for name in ("name", "height", "width")):
                return False
            for column in COLUMNS:
                if batch[f"{column}_bytes"][0].as_py() != (item[column] and os.stat(item[column]).st_size):
                    return False
                if item[column]:
                    _stored(str(path), column, number)[:, :]
    except DataError:
        return False
    return True


def _stored(path: str, column: str, row: int) -> StoredImage:
    batch = _batch(path, row)
    height, width = batch["height"][0].as_py(), batch["width"][0].as_py()
    shape = (height, width) if column == "label" else (height, width, 3)
    try:
        # The buffer under the only row: taken as a value, it would be copied.
        pixels = np.frombuffer(batch[column].buffers()[2], np.uint8, math.prod(shape)).reshape(shape)
        checks = batch[f"{column}_checks"][0].values.to_numpy()
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"{path}: holds no {column} in row {row} as it should; {AGAIN}") from None
    return StoredImage(pixels, checks, f"{path}: {batch['name'][0].as_py()} ({column})")


def _row(item: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: item[name] for name in ("name", "height", "width")}
    for column in COLUMNS:
        if item[column] is None:
            continue
        pixels = (read_labels if column == "label" else read_rgb)(item[column])
        if pixels.shape[:2] != (item["height"], item["width"]):
            raise DataError(f"{item[column]}: changed while it was read; start again")
        row[column] = pixels.tobytes()
        row[f"{column}_checks"] = [_check(pixels, band) for band in range(-(-len(pixels) // BAND))]
        row[f"{column}_bytes"] = os.stat(item[column]).st_size
    return row


def _check(pixels: Pixels, band: int) -> int:
    return int(imagecodecs.deflate_crc32(pixels[band * BAND : (band + 1) * BAND]))  # type: ignore[arg-type]


def _batch(path: str, row: int) -> pa.RecordBatch:
    state = _state(path)
    try:
        return _reader(path, *state).get_batch(row)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: is damaged ({one_line(error, 120)}); {AGAIN}") from None


def _state(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {AGAIN}") from None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=256)  # of a process: opening reads the footer
def _reader(path: str, changed: int, size: int) -> pa.ipc.RecordBatchFileReader:
    """A shard in its state of now: one that was written anew is opened anew."""
    return pa.ipc.open_file(pa.memory_map(path))
