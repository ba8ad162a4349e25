"""Shards of a prepared data set: Arrow files of decoded pixels, memory-mapped, of which a crop reads only its own rows.

A shard has one record batch, called record here, for each item: its clean image, label map of train ids and noisy
partner, whichever it has, pixel row after pixel row and uncompressed; a checksum of every `BAND` pixel rows; and the
size of each source file in bytes. A file beside it names the SHA-256 of the source files, by which `prepare` notices
that one was replaced by another of its size; shards of earlier versions have none.

An image in a shard is named by its place, FILE#COLUMN/RECORD, which stands where the path of an image file would.

Images are stored whole and uncompressed because decompressing would take longer than all the rest of cutting a crop.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pyarrow as pa

from pipelines import parsing
from pipelines.data.arrow_file import unsafe_content
from pipelines.data.images import DataError, Pixels, read_labels, read_rgb
from pipelines.data.labels import CITYSCAPES
from pipelines.runtime import files
from pipelines.text import one_line

BAND = 32  # pixel rows under one checksum
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
_SOURCES = ".sources.json"  # beside a shard: for each record, the SHA-256 of the source of each of `COLUMNS`
_PLACE = re.compile(r"(.+\.arrow)#(image|label|noisy)/(\d+)")
REMEDY = "run `d2sm prepare` again, which writes missing and damaged shards anew"


class StoredImage:
    """An image in a shard, sliced like an array: only the pixel rows of a slice are read and checked.

    Attributes:
        shape: (H, W, 3), or (H, W) of a label map.
    """

    def __init__(self, pixels: Pixels, checksums: Pixels, where: str) -> None:
        self.pixels, self.checksums, self.where = pixels, checksums, where
        self.shape = pixels.shape

    def __getitem__(self, window: tuple[slice, slice]) -> Pixels:
        """The pixels in a window of rows and columns, as a view of the file. Raises DataError if they are damaged."""
        first, last, _ = window[0].indices(self.shape[0])
        for band in range(first // BAND, -(-last // BAND)):
            if _checksum(self.pixels, band) != self.checksums[band]:
                raise DataError(f"{self.where}: rows {band * BAND} onwards are damaged (wrong checksum); {REMEDY}")
        return self.pixels[window]


def place(path: str | Path, column: Column, record: int) -> str:
    """The name of an image in a shard."""
    return f"{path}#{column}/{record}"


def open_stored(where: str) -> StoredImage | None:
    """The image at a place in a shard; None if `where` is the path of an image file.

    Raises:
        DataError: the shard is missing or damaged.
    """
    found = _PLACE.fullmatch(where)
    return _stored(found[1], found[2], int(found[3])) if found else None


def source_bytes(where: str) -> int:
    """Size in bytes of an image file, or of the file that a stored image was read from. Raises OSError or DataError."""
    found = _PLACE.fullmatch(where)
    if found is None:
        return os.stat(where).st_size
    return int(_record(found[1], int(found[3]))[f"{found[2]}_bytes"][0].as_py())


def write(path: Path, items: Iterable[Mapping[str, Any]], label_set: str = CITYSCAPES) -> None:
    """Write a shard, whole or not at all, holding one item in memory at a time.

    Args:
        items: rows of the index.
        label_set: of their label maps.

    Raises:
        ImageError: a file cannot be read.
        DataError: an image no longer has the size that was indexed.
        OSError: the shard cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    items = list(items)
    sources = [_digests(item) for item in items]  # before pixels are read: a change in between is noticed the next time
    with (
        files.replacing(path, shared=True, sync=True) as temporary,
        temporary.open("wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        for item in items:
            record: dict[str, Any] = {name: item[name] for name in ("name", "height", "width")}
            for column in COLUMNS:
                source = item[column]
                if source is None:
                    continue
                pixels = read_labels(source, label_set) if column == "label" else read_rgb(source)
                if pixels.shape[:2] != (item["height"], item["width"]):
                    raise DataError(f"{source}: changed while it was read; start again")
                record[column] = pixels.tobytes()
                record[f"{column}_checks"] = [_checksum(pixels, band) for band in range(-(-len(pixels) // BAND))]
                record[f"{column}_bytes"] = os.stat(source).st_size
            writer.write_batch(pa.RecordBatch.from_pylist([record], schema=SCHEMA))
    # After the shard: a process that is killed in between leaves one that is checked by sizes, or written anew.
    files.write_text(path.with_suffix(_SOURCES), json.dumps(sources), shared=True)


def is_whole(path: Path, items: list[dict[str, Any]]) -> bool:
    """Whether a shard holds these very items (rows of the index), undamaged; of earlier versions, going by sizes."""
    if not path.is_file():
        return False
    try:
        if _reader(str(path), *_state(str(path))).num_record_batches != len(items):
            return False
        if (sources := path.with_suffix(_SOURCES)).exists():
            known = parsing.read_json(sources, list[list[str | None]], error=DataError, remedy=REMEDY)
            if known != [_digests(item) for item in items]:
                return False
        for number, item in enumerate(items):
            record = _record(str(path), number)
            if any(record[name][0].as_py() != item[name] for name in ("name", "height", "width")):
                return False
            for column in COLUMNS:
                if record[f"{column}_bytes"][0].as_py() != (item[column] and os.stat(item[column]).st_size):
                    return False
                if item[column]:
                    _stored(str(path), column, number)[:, :]  # checks all checksums
    except DataError:
        return False
    return True


def _digests(item: Mapping[str, Any]) -> list[str | None]:
    """The SHA-256 of an item's files, by column; None: there is none, or it cannot be read, as reading it will say."""

    def digest(source: str | None) -> str | None:
        try:
            return files.sha256(Path(source)) if source else None
        except OSError:
            return None

    return [digest(item[column]) for column in COLUMNS]


def _stored(path: str, column: str, number: int) -> StoredImage:
    record = _record(path, number)
    height, width = record["height"][0].as_py(), record["width"][0].as_py()
    try:
        shape = (height, width) if column == "label" else (height, width, 3)
        # The buffer of the value, which is mapped; the value as bytes would be a copy.
        pixels = np.frombuffer(record[column][0].as_buffer(), np.uint8).reshape(shape)
        checksums = record[f"{column}_checks"][0].values.to_numpy()
        if not pixels.size or len(checksums) != -(-height // BAND):
            raise ValueError
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"{path}: record {number} lacks a whole {column}; {REMEDY}") from None
    return StoredImage(pixels, checksums, f"{path}: {record['name'][0].as_py()} ({column})")


def _checksum(pixels: Pixels, band: int) -> int:
    return int(imagecodecs.deflate_crc32(pixels[band * BAND : (band + 1) * BAND]))  # type: ignore[arg-type]


def _record(path: str, number: int) -> pa.RecordBatch:
    state = _state(path)
    try:
        record = _reader(path, *state).get_batch(number)
        record.validate(full=True)  # offsets that lead out of the file would be followed; pixels are not looked at
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is damaged ({one_line(error, 120)}); {REMEDY}") from None
    if record.num_rows != 1:
        raise DataError(f"{path}: record {number} holds {record.num_rows} items, not one; {REMEDY}")
    return record


def _state(path: str) -> tuple[int, int]:
    """Time of the last change and size of a shard."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {REMEDY}") from None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=256)  # opening a shard reads its footer
def _reader(path: str, changed: int, size: int) -> pa.ipc.RecordBatchFileReader:
    """An open shard. Its state is part of the cache's key, so that a shard that was written anew is opened anew.

    Raises:
        DataError: it is not of the kind that `write` writes.
    """
    if problem := unsafe_content(path):
        raise DataError(f"{path}: is damaged or no shard ({problem}); {REMEDY}")
    try:
        reader = pa.ipc.open_file(pa.memory_map(path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is damaged ({one_line(error, 120)}); {REMEDY}") from None
    if not reader.schema.equals(SCHEMA):
        raise DataError(f"{path}: is no shard: its columns are not those that `d2sm prepare` writes; {REMEDY}")
    return reader
