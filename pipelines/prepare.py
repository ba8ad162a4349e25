"""Prepare: a data set decoded once and stored as plain pixels, so that training reads crops without decoding.

Ray Data deals the shards to tasks; each writes one, a photograph at a time. A shard that is there and whole is left
as it is, so a stopped preparation goes on, and a complete set is checked and mended by the same call.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from pipelines.data import index, shards
from pipelines.data.images import DataError
from pipelines.data.index import Layout
from pipelines.data.manifest import MANIFEST, STARTED, Manifest, Photograph, Shard, is_prepared, load
from pipelines.runtime import files, session
from pipelines.runtime.progress import Line
from pipelines.text import one_line


@dataclass(frozen=True)
class Prepared:
    """A set that is complete: where, and how many of its shards this call had to write."""

    root: Path
    photographs: int
    shards: int
    written: int
    bytes: int


@dataclass(frozen=True)
class _Draft:
    """A shard to be: its file below the root, and the rows of the index that go into it."""

    file: str
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(_bytes(item) for item in self.items)


def prepare(
    source: str | Path,
    target: str | Path,
    *,
    layout: Layout = "cityscapes",
    splits: Sequence[str] = ("train", "val"),
    shard_mb: float = 256,
    quiet: bool = False,
    verbose: bool = False,
) -> Prepared:
    """Write `source` as a prepared data set to `target`, or go on with it, or check and mend it.

    Args:
        source: a data set of files, as `data.root`.
        target: a folder that is new, empty, or was begun from this source. On a cluster, one that all nodes see.
        splits: which are written; splits of the same photographs are stored once.
        shard_mb: size of a shard in MB, of 10^6 bytes; it holds at least one photograph.

    Raises:
        DataError: bad data, a source that changed, a target that holds something else, or no room on its disk.
        ImageError: a photograph that cannot be read.
    """
    root = Path(os.path.abspath(Path(target).expanduser()))
    tables = _tables(source, splits, layout)
    manifest = Manifest(
        source=os.path.abspath(Path(source).expanduser()),
        layout=layout,
        fingerprints={split: index.fingerprint(table) for split, table in tables.items()},
        shard_mb=shard_mb,
    )
    _check_target(root, manifest)
    drafts = {split: _drafts(split, tables[split], shard_mb) for split in tables}
    for split, same in _twins(tables).items():
        drafts[split] = drafts[same]
    todo = list({draft.file: draft for each in drafts.values() for draft in each}.values())
    _check_room(root, todo)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MANIFEST).exists():
        manifest.save(root / STARTED)
    for folder in (root, *(root / split for split in tables)):
        files.sweep(folder)
    session.start(cpus=os.cpu_count() or 1, verbose=verbose)
    done, written = _write(root, todo, quiet)
    complete = {split: tuple(done[draft.file] for draft in each) for split, each in drafts.items()}
    manifest.model_copy(update={"shards": complete}).save(root / MANIFEST)
    (root / STARTED).unlink(missing_ok=True)
    photographs = sum(len(draft.items) for draft in todo)
    return Prepared(root, photographs, len(todo), written, sum(shard.bytes for shard in done.values()))


def _tables(source: str | Path, splits: Sequence[str], layout: Layout) -> dict[str, pa.Table]:
    if is_prepared(Path(source)):
        raise DataError(f"{source}: is a prepared set already; give the photographs")
    labels = "optional" if layout == "cityscapes" else None
    return {split: index.index(source, split, layout=layout, labels=labels) for split in splits}  # type: ignore[arg-type]


def _check_target(root: Path, manifest: Manifest) -> None:
    """A new or empty folder, or this very set."""
    if not root.exists() or (root.is_dir() and all(files.is_leftover(path) for path in root.iterdir())):
        return
    if not root.is_dir() or not is_prepared(root):
        raise DataError(f"{root}: holds something else; give a new or empty folder")
    before = load(root, MANIFEST if (root / MANIFEST).is_file() else STARTED)
    if before.fingerprints != manifest.fingerprints and before.fingerprints.keys() == manifest.fingerprints.keys():
        raise DataError(
            f"{manifest.source}: changed since {root} was begun (fingerprint {_line(before)}, now {_line(manifest)}); "
            "prepare it into a new folder"
        )
    for name in ("fingerprints", "layout", "shard_mb"):
        if getattr(before, name) != getattr(manifest, name):
            what = "splits" if name == "fingerprints" else name
            was = " ".join(before.fingerprints) if name == "fingerprints" else getattr(before, name)
            raise DataError(f"{root}: was begun with {what} {was}; say the same, or give a new folder")


def _line(manifest: Manifest) -> str:
    return " ".join(manifest.fingerprints.values())


def _twins(tables: dict[str, pa.Table]) -> dict[str, str]:
    """Splits that hold the same files as an earlier one, such as all those of a folder without splits."""
    names = list(tables)
    return {
        split: names[earlier]
        for number, split in enumerate(names)
        for earlier in range(number)
        if tables[names[earlier]].equals(tables[split])
    }


def _drafts(split: str, table: pa.Table, shard_mb: float) -> list[_Draft]:
    drafts: list[_Draft] = []
    size = 0
    for item in table.to_pylist():
        if not drafts or size + _bytes(item) > shard_mb * 1e6:
            drafts.append(_Draft(f"{split}/{len(drafts):05d}.arrow"))
            size = 0
        drafts[-1].items.append(item)
        size += _bytes(item)
    return drafts


def _bytes(item: dict[str, Any]) -> int:
    planes = 3 + 3 * (item["noisy"] is not None) + (item["label"] is not None)
    return int(item["height"]) * int(item["width"]) * planes


def _check_room(root: Path, drafts: list[_Draft]) -> None:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    wanted = sum(draft.bytes for draft in drafts if not (root / draft.file).exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise DataError(f"{root}: needs {wanted / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free; make room")


def _write(root: Path, drafts: list[_Draft], quiet: bool) -> tuple[dict[str, Shard], int]:
    """All shards, by file, and how many were not there yet."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else the reason is lost: only its text comes through
    schema = pa.schema([("file", pa.string()), ("items", pa.list_(pa.struct(list(index.SCHEMA))))])
    rows = [pa.Table.from_pylist([{"file": draft.file, "items": draft.items}], schema=schema) for draft in drafts]
    tasks = ray.data.from_arrow(rows).map_batches(_Task(root), batch_size=1, batch_format="pyarrow")
    done: dict[str, Shard] = {}
    written = photographs = 0
    total = sum(len(draft.items) for draft in drafts)
    try:
        with Line("prepare", total, quiet=quiet) as line:
            for row in tasks.iter_rows():
                done[row["file"]] = Shard.model_validate_json(row["shard"])
                written += row["written"]
                photographs += len(done[row["file"]].photographs)
                line.to(photographs)
    except Exception as error:  # Ray wraps what a task raised in several layers
        reason = session.cause(error)
        if isinstance(reason, (ValueError, OSError)):
            raise DataError(f"{root}: {one_line(reason, 600)}") from error
        raise
    return done, written


class _Task:
    """Writes a shard, unless it is there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            path, items = self.root / row["file"], row["items"]
            whole = shards.is_whole(path, items)
            if not whole:
                shards.write(path, items)
            shard = _shard(path, row["file"], items)
            yield pa.table({"file": [row["file"]], "written": [not whole], "shard": [shard.model_dump_json()]})


def _shard(path: Path, file: str, items: list[dict[str, Any]]) -> Shard:
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    photographs = tuple(
        Photograph(
            name=item["name"],
            height=item["height"],
            width=item["width"],
            label=item["label"] is not None,
            noisy=item["noisy"] is not None,
        )
        for item in items
    )
    return Shard(file=file, bytes=path.stat().st_size, sha256=digest, photographs=photographs)
