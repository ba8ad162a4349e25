"""Data sets on disk -> one Arrow table of items, whatever their layout."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from pipelines.data import layouts, manifest, shards
from pipelines.data.images import TRAIN_IDS, DataError, ImageError, size_of
from pipelines.data.layouts import Item
from pipelines.text import more

__all__ = ["SCHEMA", "TRAIN_IDS", "DataError", "fingerprint", "index"]

Layout = Literal["cityscapes", "folder", "pairs"]
Labels = Literal["required", "optional", "ignore"]
OnBad = Literal["stop", "skip"]

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("image", pa.string()),
        ("label", pa.string()),
        ("noisy", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)

_THREADS = 16


def index(
    root: str | Path,
    split: str,
    *,
    layout: Layout = "cityscapes",
    labels: Labels | None = None,
    on_bad: OnBad = "stop",
) -> pa.Table:
    """The items of a split as a table of `SCHEMA`, sorted by name; reads headers only.

    root: a folder, local or mounted; or one that `d2sm prepare` made of such a folder: then image, label and noisy are
        places in its shards, and everything else, the fingerprint too, is as from the source.
    layout: "cityscapes": leftImg8bit/<split>/<city>/*_leftImg8bit.png with
        gtFine/<split>/<city>/*_gtFine_labelIds.png. "folder": all PNG and JPEG files below root/<split> or,
        where root has no splits, below root; no labels. "pairs": clean/ and noisy/ with the same names, below
        root/<split> or root; `image` is the clean one.
    labels: "required" (the default for cityscapes), "optional" (null where there is none) or "ignore".
    on_bad: "stop", or "skip" to leave out items with a file that its header or ending shows to be unusable.
        Those are listed in `table.schema.metadata[b"skipped"]`, a JSON list of {"name", "file", "why"}.

    name is the path below the split without suffix ("aachen/aachen_000000_000019"); image, label and noisy
    are absolute paths; height and width are in pixels. Raises DataError.
    """
    layouts.one_of("layout", layout, get_args(Layout))
    layouts.one_of("labels", labels or "required", get_args(Labels))
    layouts.one_of("on_bad", on_bad, get_args(OnBad))
    if layout != "cityscapes" and labels in ("required", "optional"):
        raise DataError(f'labels="{labels}": layout="{layout}" has no labels; leave it out or use layout="cityscapes"')
    base = layouts.open_root(root)
    if split in (".", "..") or "/" in split or "\\" in split:
        raise DataError(f"split {split!r} is not the name of a folder; give a plain name, such as train or val")
    if manifest.is_prepared(base):
        wanted = labels or ("required" if layout == "cityscapes" else "ignore")
        return _as_table(manifest.rows(base, split, layout=layout, labels=wanted), [])
    find = {"cityscapes": layouts.cityscapes, "folder": layouts.folder, "pairs": layouts.pairs}[layout]
    items = find(base, split, labels or "required")
    return _table(items, base, on_bad)


def fingerprint(table: pa.Table) -> str:
    """16 hex digits over the names, sizes in pixels and bytes of the files of an index, wherever its root is.

    Cheap enough to store with every model: it tells data sets apart, it is no proof against tampering.
    """
    rows = sorted(table.select(SCHEMA.names).to_pylist(), key=lambda row: str(row["name"]))
    with ThreadPoolExecutor(_THREADS) as pool:
        lines = list(pool.map(_fingerprint_line, rows))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _fingerprint_line(row: dict[str, Any]) -> str:
    try:
        size = [row[key] and shards.source_bytes(row[key]) for key in ("image", "label", "noisy")]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; the data set changed, index it again") from None
    return json.dumps([row["name"], row["height"], row["width"], *size])


def _table(items: list[Item], root: Path, on_bad: str) -> pa.Table:
    items = sorted(items, key=lambda item: item.name)
    with ThreadPoolExecutor(_THREADS) as pool:
        measured = list(pool.map(_measure, items))
    good: list[tuple[Item, tuple[int, int]]] = []
    bad: list[dict[str, str]] = []
    for item, result in zip(items, measured, strict=True):
        if isinstance(result, dict):
            bad.append(result)
        else:
            good.append((item, result))
    if bad and (on_bad == "stop" or not good):
        hint = " (data.bad_images=skip leaves such files out)" if good else f", and no usable image is left in {root}"
        raise DataError(f"{bad[0]['why']}{more(bad)}{hint}")
    rows = [
        (i.name, str(i.image), i.label and str(i.label), i.noisy and str(i.noisy), height, width)
        for i, (height, width) in good
    ]
    return _as_table(rows, bad)


def _as_table(rows: list[tuple[Any, ...]], bad: list[dict[str, str]]) -> pa.Table:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({b"skipped": json.dumps(bad).encode()}))


def _measure(item: Item) -> tuple[int, int] | dict[str, str]:
    """Height and width of an item, or what is wrong with one of its files."""
    sizes: list[tuple[int, int]] = []
    for path, kind in item.files():
        try:
            sizes.append(size_of(path, kind=kind))
        except ImageError as error:
            return {"name": item.name, "file": str(path), "why": str(error)}
        if sizes[-1] != sizes[0]:
            (height, width), (wanted_height, wanted_width) = sizes[-1], sizes[0]
            raise DataError(
                f"{path}: is {height}x{width} (height x width), but its image {item.image} is "
                f"{wanted_height}x{wanted_width}; export both at the same size"
            )
    return sizes[0]
