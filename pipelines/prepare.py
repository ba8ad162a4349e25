"""Prepare: decode a data set once and store it as plain pixels, so that training reads crops without decoding.

Ray Data deals the shards to tasks, and each task writes its shards one item at a time. A shard that is there and whole
is kept, so a preparation that was stopped continues, and the same call checks and mends a complete set.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from pipelines.data import shards
from pipelines.data.images import DataError
from pipelines.data.index import SCHEMA, Labels, Layout, fingerprint, index, layout_of
from pipelines.data.labels import CITYSCAPES
from pipelines.data.labels import label_set as labels_of
from pipelines.data.manifest import MANIFEST, STARTED, Manifest, Shard, StoredItem, is_prepared, load
from pipelines.runtime import files, owner, session
from pipelines.runtime.progress import Line
from pipelines.text import one_line


@dataclass(frozen=True)
class Prepared:
    """A complete prepared set: its folder, what it holds, and how many of its shards this call wrote."""

    root: Path
    photographs: int
    shards: int
    written: int
    bytes: int
    layout: Layout


@dataclass(frozen=True)
class _PlannedShard:
    """A shard to be written: its path below the root, and the rows of the index that go into it."""

    file: str
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(map(_decoded_bytes, self.items))


def prepare(
    source: str | Path,
    target: str | Path,
    *,
    layout: Layout = "cityscapes",
    splits: Sequence[str] = ("train", "val"),
    shard_mb: float = 256,
    label_set: str = CITYSCAPES,
    quiet: bool = False,
    verbose: bool = False,
) -> Prepared:
    """Write `source` to `target` as a prepared data set; or continue it, or check and mend it.

    Args:
        source: a data set of image files, as data.root.
        target: a folder that is new or empty, or that was begun from this source. On a cluster all nodes must see it.
        layout: of the source; instead of the default another one is taken if only that fits (`index.layout_of`).
        splits: the splits to write. A source without splits is written as the part that is trained on and the one that
            is held out (see `index`).
        shard_mb: size of a shard in MB (10^6 bytes); it holds at least one item.
        label_set: what the label maps hold, as data.labels; they are stored as its train ids.
        quiet: no progress line.
        verbose: show Ray's own log.

    Raises:
        InUseError: another process writes to the target.
        DataError: a data set or an image that cannot be used, a source that changed, a target with other content, or
            too little free space on its disk.
    """
    root = Path(os.path.abspath(Path(target).expanduser()))
    if is_prepared(Path(source).expanduser()):
        raise DataError(f"{source}: is a prepared set already; give the folder of the photographs")
    if not 0 < shard_mb < math.inf:  # NaN too
        raise DataError(f"shard_mb={shard_mb:g}: give the size of a shard in MB, above 0")
    if "" in splits:
        raise DataError("splits='': give the names of splits, such as train val")
    with owner.owned(root, remedy="wait until it has ended, or give another target"):
        return _prepare(
            source, root, layout_of(source, layout), splits, shard_mb, label_set, quiet=quiet, verbose=verbose
        )


def _prepare(
    source: str | Path,
    root: Path,
    layout: Layout,
    splits: Sequence[str],
    shard_mb: float,
    label_set: str,
    *,
    quiet: bool,
    verbose: bool,
) -> Prepared:
    labels: Labels | None = "optional" if layout == "cityscapes" else None
    divided = not _begun_undivided(root)
    tables = {
        split: index(source, split, layout=layout, labels=labels, hold_out=divided, label_set=label_set)
        for split in splits
    }
    manifest = Manifest(
        source=os.path.abspath(Path(source).expanduser()),
        layout=layout,
        fingerprints={split: fingerprint(table) for split, table in tables.items()},
        shard_mb=shard_mb,
        labels=labels_of(label_set).shown,
    )
    _check_target(root, manifest)
    planned: dict[str, list[_PlannedShard]] = {}
    for split, table in tables.items():
        # A split with the files of an earlier one shares its shards: in sets of earlier versions, see `divided`.
        same = next((earlier for earlier in planned if tables[earlier].equals(table)), None)
        planned[split] = planned[same] if same is not None else _planned(split, table, shard_mb)
    wanted = list({shard.file: shard for of_split in planned.values() for shard in of_split}.values())
    _check_space(root, wanted)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MANIFEST).exists():
        manifest.save(root / STARTED)
    for folder in (root, *(root / split for split in tables)):
        files.sweep(folder)
    session.start(cpus=os.cpu_count() or 1, verbose=verbose)
    done, written = _write(root, wanted, label_set, quiet)
    complete = {split: tuple(done[shard.file] for shard in of_split) for split, of_split in planned.items()}
    manifest.model_copy(update={"shards": complete}).save(root / MANIFEST)
    (root / STARTED).unlink(missing_ok=True)
    photographs = sum(len(shard.items) for shard in wanted)
    size = sum(shard.bytes for shard in done.values())
    return Prepared(root, photographs, len(wanted), written, size, layout)


def _begun_undivided(root: Path) -> bool:
    """Whether an earlier version began this set from a source without splits, all of it as each of its splits."""
    if not is_prepared(root):
        return False
    prints = list(load(root, MANIFEST if (root / MANIFEST).is_file() else STARTED).fingerprints.values())
    return len(prints) > 1 and len(set(prints)) == 1


def _check_target(root: Path, manifest: Manifest) -> None:
    """Check that the target is new or empty, or the set of this very manifest."""
    if not root.exists() or (root.is_dir() and all(path.name == owner.FILE for path in root.iterdir())):
        return
    if not root.is_dir() or not is_prepared(root):
        raise DataError(f"{root}: has other content; give a new or empty folder")
    before = load(root, MANIFEST if (root / MANIFEST).is_file() else STARTED)
    was, now = before.fingerprints, manifest.fingerprints
    if was != now and was.keys() == now.keys():
        raise DataError(
            f"{manifest.source}: changed since {root} was begun (fingerprint {' '.join(was.values())}, now "
            f"{' '.join(now.values())}); prepare it into a new folder"
        )
    for name, old, new in (
        ("splits", " ".join(was), " ".join(now)),
        ("layout", before.layout, manifest.layout),
        ("shard_mb", before.shard_mb, manifest.shard_mb),
        ("labels", before.labels, manifest.labels),
    ):
        if old != new:
            raise DataError(f"{root}: was begun with {name} {old}, not {new}; give the same, or a new folder")


def _planned(split: str, table: pa.Table, shard_mb: float) -> list[_PlannedShard]:
    """Fill shards with the items of a split, in order."""
    planned: list[_PlannedShard] = []
    size = 0
    for item in table.to_pylist():
        if not planned or size + _decoded_bytes(item) > shard_mb * 1e6:
            planned.append(_PlannedShard(f"{split}/{len(planned):05d}.arrow"))
            size = 0
        planned[-1].items.append(item)
        size += _decoded_bytes(item)
    return planned


def _decoded_bytes(item: dict[str, Any]) -> int:
    """Size of an item's pixels."""
    planes = 3 + 3 * (item["noisy"] is not None) + (item["label"] is not None)
    return int(item["height"]) * int(item["width"]) * planes


def _check_space(root: Path, planned: list[_PlannedShard]) -> None:
    """Check that the shards that are not there yet fit on the disk."""
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    wanted = sum(shard.bytes for shard in planned if not (root / shard.file).exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise DataError(
            f"{root}: needs {wanted / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free; free more, or give another target"
        )


def _write(root: Path, planned: list[_PlannedShard], label_set: str, quiet: bool) -> tuple[dict[str, Shard], int]:
    """Write the shards that are missing or damaged; gives all by file, and the number of those written."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a large shard may take longer than Ray's half an hour
    context.raise_original_map_exception = True  # Ray would otherwise pass on the text of an error alone
    schema = pa.schema([("file", pa.string()), ("items", pa.list_(pa.struct(list(SCHEMA))))])
    rows = [pa.Table.from_pylist([{"file": shard.file, "items": shard.items}], schema=schema) for shard in planned]
    tasks = ray.data.from_arrow(rows).map_batches(_WriteTask(root, label_set), batch_size=1, batch_format="pyarrow")
    done: dict[str, Shard] = {}
    written = photographs = 0
    try:
        with Line("prepare", sum(len(shard.items) for shard in planned), quiet=quiet) as line:
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


class _WriteTask:
    """What a task does: it writes a shard unless it is there and whole, and describes it for the manifest."""

    def __init__(self, root: Path, label_set: str) -> None:
        self.root, self.label_set = root, label_set

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            path, items = self.root / row["file"], row["items"]
            whole = shards.is_whole(path, items)
            if not whole:
                shards.write(path, items, self.label_set)
            stored = tuple(
                StoredItem(
                    name=item["name"],
                    height=item["height"],
                    width=item["width"],
                    label=item["label"] is not None,
                    noisy=item["noisy"] is not None,
                )
                for item in items
            )
            shard = Shard(file=row["file"], bytes=path.stat().st_size, sha256=files.sha256(path), photographs=stored)
            yield pa.table({"file": [row["file"]], "written": [not whole], "shard": [shard.model_dump_json()]})
