"""The index: the items of a split of a data set as one Arrow table, whatever the data set's layout and storage."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from pipelines.data import layouts, manifest, shards
from pipelines.data.held_out import names_of
from pipelines.data.images import TRAIN_IDS, DataError, ImageError, size_of
from pipelines.data.labels import CITYSCAPES
from pipelines.data.labels import label_set as labels_of
from pipelines.data.layouts import Layout
from pipelines.text import more

__all__ = [
    "SCHEMA",
    "TRAIN_IDS",
    "DataError",
    "Layout",
    "fingerprint",
    "index",
    "layout_of",
    "skipped_images",
    "undivided",
]

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

_THREADS = 16  # of reading headers and sizes, which mostly waits for the file system


def index(
    root: str | Path,
    split: str,
    *,
    layout: Layout = "cityscapes",
    labels: Labels | None = None,
    on_bad: OnBad = "stop",
    hold_out: bool = True,
    label_set: str = CITYSCAPES,
) -> pa.Table:
    """Find the items of a split, reading the headers of their files only.

    Args:
        root: a folder, local or mounted; or one that `d2sm prepare` wrote from such a folder. In that case image, label
            and noisy are places in its shards, and everything else, the fingerprint too, is as from the source.
        split: folder of the split. A "folder" or "pairs" root may do without: "val" is then a tenth of its items (see
            `held_out`), "train" the others, and "" all of them.
        layout: "cityscapes": leftImg8bit/<split>/<city>/*_leftImg8bit.png with
            gtFine/<split>/<city>/*_gtFine_labelIds.png. "folder": all photographs (see `finding`) below root/<split>,
            or below root if that has no splits; no labels. "pairs": clean/ and noisy/ with files of the same names,
            or folders noisy/NAME/ with several partners of clean/NAME, below root/<split> or root; `image` is the clean
            one, and each noisy one is an item.
        labels: "required" (the default for cityscapes), "optional" (null where there is none) or "ignore".
        on_bad: "stop", or "skip" to leave out items with a file whose header or end shows that it cannot be used
            (`skipped_images` lists them). Photographs with names of no layout are left out and listed in any case.
        label_set: what the label maps hold and how they are called, see `labels.label_set`.
        hold_out: False takes all items of a root without splits for each of its splits, as earlier versions did.

    Returns:
        A table of `SCHEMA`, sorted by name. name is the path below the split without suffix
        ("aachen/aachen_000000_000019"); image, label and noisy are absolute paths, or null; height and width are in
        pixels.

    Raises:
        DataError: no such folder or split, another layout, files that cannot be used, or missing labels.
    """
    layouts.one_of("layout", layout, get_args(Layout))
    layouts.one_of("labels", labels or "required", get_args(Labels))
    layouts.one_of("on_bad", on_bad, get_args(OnBad))
    if layout != "cityscapes" and labels in ("required", "optional"):
        raise DataError(f'labels="{labels}": layout="{layout}" has no labels; leave it out or use layout="cityscapes"')
    known = labels_of(label_set)
    base = layouts.open_root(root)
    if split in (".", "..") or "/" in split or "\\" in split:
        raise DataError(f"split {split!r} is not the name of a folder; give a plain name, such as train or val")
    if manifest.is_prepared(base):
        wanted = labels or ("required" if layout == "cityscapes" else "ignore")
        rows = manifest.items(base, split, layout=layout, labels=wanted, label_set=known.shown)
        whole = hold_out and layout != "cityscapes" and manifest.is_undivided(base)
        kept = names_of(split, [row[0] for row in rows], base) if whole else None
        return _table([row for row in rows if kept is None or row[0] in kept], [], None if kept is None else len(rows))
    find = {"cityscapes": layouts.cityscapes, "folder": layouts.folder, "pairs": layouts.pairs}[layout]
    items, left_out, whole = find(base, split, labels or "required", known)
    # All pairs of a photograph are held out, or none.
    kept = names_of(split, {item.scene or item.name for item in items}, base) if whole and hold_out else None
    found = [item for item in items if kept is None or (item.scene or item.name) in kept]
    found.sort(key=lambda item: item.name)
    with ThreadPoolExecutor(_THREADS) as pool:
        measured = list(pool.map(_size, found))
    good: list[tuple[Any, ...]] = []
    bad: list[dict[str, str]] = []
    for item, size in zip(found, measured, strict=True):
        if isinstance(size, dict):
            bad.append(size)
        else:
            files = [None if file is None else str(file) for file in (item.image, item.label, item.noisy)]
            good.append((item.name, *files, *size))
    if bad and (on_bad == "stop" or not good):
        remedy = "; data.bad_images=skip leaves such images out" if good else f", and no usable image is left in {base}"
        raise DataError(f"{bad[0]['why']}{more(bad)}{remedy}")
    return _table(good, bad + [_left_out(path, base) for path in left_out], None if kept is None else len(items))


def _left_out(path: Path, base: Path) -> dict[str, str]:
    """A photograph that is none of the layout's, as a record of `skipped_images`."""
    why = f"{path}: is not named *{layouts.IMAGE}, so it belongs to no split; rename it, or remove it"
    return {"name": str(path.relative_to(base)), "file": str(path), "why": why}


def skipped_images(items: pa.Table) -> list[list[str]]:
    """The [name, why] of the images that indexing left out."""
    found = json.loads((items.schema.metadata or {}).get(b"skipped", b"[]"))
    return [[bad["name"], bad["why"]] for bad in found]


def undivided(items: pa.Table) -> int | None:
    """How many items the data set has in all, if it has no splits and these are a part of it; else None."""
    count = (items.schema.metadata or {}).get(b"undivided")
    return None if count is None else int(count)


def layout_of(root: str | Path, layout: Layout) -> Layout:
    """The layout of a data set: the given one, unless that is the default, cityscapes, and only another one fits.

    A prepared data set has the layout of its source. Where no layout fits, or the root is one level off, the given one
    is kept, and reading it then says what is wrong.
    """
    path = Path(root).expanduser().absolute()
    if layout != "cityscapes" or not str(root) or "://" in str(root) or not path.is_dir():
        return layout
    if manifest.is_prepared(path):
        return manifest.layout_of(path) or layout
    if (path / "gtFine").is_dir() or layouts.one_level_off(path):
        return layout
    return layouts.fitting(path) or layout


def fingerprint(items: pa.Table) -> str:
    """16 hex digits over names, sizes in pixels and sizes of files in bytes of an index; the root does not count.

    It tells data sets apart cheaply enough to be stored with every model. It is no proof against tampering, and does
    not see that a file was replaced by another of its size, such as an uncompressed one that was edited.

    Raises:
        DataError: a file is gone.
    """

    def line(row: dict[str, Any]) -> str:
        try:
            size = [row[column] and shards.source_bytes(row[column]) for column in shards.COLUMNS]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}; the data set changed, index it again") from None
        return json.dumps([row["name"], row["height"], row["width"], *size])

    rows = sorted(items.select(SCHEMA.names).to_pylist(), key=lambda row: str(row["name"]))
    with ThreadPoolExecutor(_THREADS) as pool:
        lines = list(pool.map(line, rows))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _table(rows: list[tuple[Any, ...]], bad: list[dict[str, str]], undivided: int | None) -> pa.Table:
    """Rows of `SCHEMA` as a table, with metadata.

    Args:
        bad: the name, file and reason of each item that was left out.
        undivided: of how many items this is a part, where the data set has no splits; None where it has.
    """
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    about = {b"skipped": json.dumps(bad).encode()}
    if undivided is not None:
        about[b"undivided"] = str(undivided).encode()
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(about))


def _size(item: layouts.ItemFiles) -> tuple[int, int] | dict[str, str]:
    """(height, width) of an item, or which of its files cannot be used and why."""
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
