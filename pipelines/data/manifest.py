"""What a prepared data set says of itself, in `prepared.json`: its source, how it is stored, and every shard.

`d2sm prepare` writes it last, so a set that has it is complete. Until then `prepared.partial.json` says what was begun.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.data import shards
from pipelines.data.images import DataError
from pipelines.data.layouts import one_of
from pipelines.runtime import files
from pipelines.text import more

MANIFEST, STARTED = "prepared.json", "prepared.partial.json"
VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Photograph(_Part):
    """A row of a shard."""

    name: str
    height: int
    width: int
    label: bool
    noisy: bool


class Shard(_Part):
    """A file: where below the root, its size and checksum, and what is in it."""

    file: str
    bytes: int
    sha256: str
    photographs: tuple[Photograph, ...]


class Manifest(_Part):
    """The whole set. `shards` by split; splits of the same photographs share them."""

    version: int = VERSION
    source: str
    layout: str
    fingerprints: dict[str, str]  # of the source, by split
    shard_mb: float
    compression: str = "none"
    tile: str = "whole images"
    rows_a_check: int = shards.BAND
    shards: dict[str, tuple[Shard, ...]] = {}

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        files.write_text(path, self.model_dump_json(indent=1))


def is_prepared(root: Path) -> bool:
    """Whether `d2sm prepare` has written or begun this folder."""
    return (root / MANIFEST).is_file() or (root / STARTED).is_file()


def load(root: Path, name: str = MANIFEST) -> Manifest:
    """Read what a set says of itself.

    Raises:
        DataError: it is missing, unreadable, or of another version.
    """
    path = root / name
    remedy = "prepare it again, into a new folder"
    try:
        tree = json.loads(path.read_text())
        if isinstance(tree, dict) and tree.get("version") != VERSION:
            raise DataError(f"{path}: is of version {tree.get('version')}, not {VERSION}; {remedy}")
        return Manifest.model_validate(tree)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise DataError(f"{path}: is damaged, no valid JSON; {remedy}") from None


def rows(root: Path, split: str, *, layout: str, labels: str) -> list[tuple[Any, ...]]:
    """A split's photographs as rows of an index, by name; sees that all shards are there in full.

    What is within them is checked when it is read.

    Raises:
        DataError: not complete, another layout, no such split, a shard that is missing or of another size, or no labels
            where they are required.
    """
    if not (root / MANIFEST).is_file():
        raise DataError(f"{root}: is not complete; run the same `d2sm prepare` again, which goes on with it")
    manifest = load(root)
    if manifest.layout != layout:
        raise DataError(f"{root}: was prepared from data.layout={manifest.layout}, not {layout}; say so")
    one_of("split", split, manifest.shards, f" in {root}")
    found = []
    for shard in manifest.shards[split]:
        path = root / shard.file
        _check_size(path, shard.bytes)
        for row, photograph in enumerate(shard.photographs):
            there = {"image": True, "label": photograph.label and labels != "ignore", "noisy": photograph.noisy}
            image, label, noisy = (shards.place(path, c, row) if there[c] else None for c in shards.COLUMNS)
            found.append((photograph.name, image, label, noisy, photograph.height, photograph.width))
    missing = [row[0] for row in found if row[2] is None]
    if labels == "required" and layout == "cityscapes" and missing:
        raise DataError(f"{root}: {missing[0]} has no label{more(missing)}; prepare it again from a set that has them")
    return sorted(found)


def _check_size(path: Path, wanted: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {shards.AGAIN}") from None
    if size != wanted:
        raise DataError(f"{path}: has {size} bytes, not {wanted}; {shards.AGAIN}")
