"""The manifest of a prepared data set, `prepared.json`: its source, how it is stored, and every shard.

`d2sm prepare` writes it last, so a set that has one is complete. Until then `prepared.partial.json` describes the set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipelines import parsing
from pipelines.data import shards
from pipelines.data.images import DataError
from pipelines.data.labels import CITYSCAPES
from pipelines.data.layouts import Layout, one_of
from pipelines.runtime import files
from pipelines.text import more

MANIFEST, STARTED = "prepared.json", "prepared.partial.json"
VERSION = 1
_BYTES = 2**28  # of a manifest: 100 of each photograph


def _relative(path: str) -> str:
    """A path that stays below the folder it is joined to, and can be shown."""
    if not path.isprintable() or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path[:80]!a} is not a plain path below the set's folder")
    return path


_Relative = Annotated[str, AfterValidator(_relative)]
_Side = Annotated[int, Field(gt=0, lt=2**31)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredItem(_Section):
    """A record of a shard: an item, and which images it has beside the clean one."""

    name: _Relative  # pictures are written under it
    height: _Side
    width: _Side
    label: bool
    noisy: bool


class Shard(_Section):
    """A shard: its path below the root, its size, its checksum (SHA-256) and its records."""

    file: _Relative
    bytes: Annotated[int, Field(ge=0)]
    sha256: str
    photographs: tuple[StoredItem, ...]


class Manifest(_Section):
    """The whole set. `shards` by split; splits of the same files share their shards."""

    version: int = VERSION
    source: str
    layout: str
    fingerprints: dict[str, str]  # of the source, by split
    shard_mb: float
    compression: str = "none"
    tile: str = "whole images"
    rows_a_check: int = shards.BAND
    labels: str = CITYSCAPES  # the label set, as `LabelSet.shown` has it
    shards: dict[str, tuple[Shard, ...]] = {}

    def save(self, path: Path) -> None:
        """Write it whole or not at all; the usual label set is not named, as in files of earlier versions."""
        usual = {"labels"} if self.labels == CITYSCAPES else None
        files.write_text(path, self.model_dump_json(indent=1, exclude=usual))


def is_prepared(root: Path) -> bool:
    """Whether `d2sm prepare` has written this folder, or begun to."""
    return (root / MANIFEST).is_file() or (root / STARTED).is_file()


def load(root: Path, name: str = MANIFEST) -> Manifest:
    """Read a set's manifest.

    Raises:
        DataError: it is missing, unreadable, or of another version.
    """
    path = root / name
    remedy = "prepare the data set again, into a new folder"
    tree = parsing.read_json(path, error=DataError, remedy=remedy, limit=_BYTES)
    if tree.get("version") != VERSION:
        raise DataError(f"{path}: is of version {tree.get('version')}, not {VERSION}; {remedy}")
    return parsing.shaped(tree, Manifest, source=path, error=DataError, remedy=remedy)


def layout_of(root: Path) -> Layout | None:
    """The layout of a set's source; None while the set is not complete.

    Raises:
        DataError: see `load`.
    """
    if not (root / MANIFEST).is_file():
        return None
    layout = load(root).layout
    one_of("layout", layout, get_args(Layout), f" in {root / MANIFEST}")
    return cast(Layout, layout)


def is_undivided(root: Path) -> bool:
    """Whether an earlier version made the set from a source without splits: all of its splits hold the same items."""
    stored = list(load(root).shards.values())
    return len(stored) > 1 and all(each == stored[0] for each in stored)


def items(root: Path, split: str, *, layout: str, labels: str, label_set: str = CITYSCAPES) -> list[tuple[Any, ...]]:
    """The items of a split as rows of the index, sorted by name.

    It is checked that every shard is there and has its size; what is in a shard is checked when it is read.

    Raises:
        DataError: the set is not complete or of another layout, it has no such split, a shard is missing or of another
            size, or labels are required and missing.
    """
    if not (root / MANIFEST).is_file():
        raise DataError(f"{root}: is not complete; run the same `d2sm prepare` again, which continues it")
    manifest = load(root)
    if manifest.layout != layout:
        raise DataError(
            f"{root}: was prepared from data.layout={manifest.layout}, not {layout}; set data.layout={manifest.layout}"
        )
    if labels != "ignore" and manifest.labels != label_set and layout == "cityscapes":
        raise DataError(
            f"{root}: was prepared with the labels of {manifest.labels}, not {label_set}; set data.labels to that set, "
            "or prepare the data set again with --labels"
        )
    one_of("split", split, manifest.shards, f" in {root}")
    found = []
    for shard in manifest.shards[split]:
        path = root / shard.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; {shards.REMEDY}") from None
        if size != shard.bytes:
            raise DataError(f"{path}: has {size} bytes, not {shard.bytes}; {shards.REMEDY}")
        for number, item in enumerate(shard.photographs):
            there = {"image": True, "label": item.label and labels != "ignore", "noisy": item.noisy}
            places = (shards.place(path, c, number) if there[c] else None for c in shards.COLUMNS)
            found.append((item.name, *places, item.height, item.width))
    missing = [name for name, _, label, *_ in found if label is None]
    if labels == "required" and layout == "cityscapes" and missing:
        raise DataError(f"{root}: {missing[0]} has no label{more(missing)}; prepare it again from a set that has them")
    return sorted(found)
