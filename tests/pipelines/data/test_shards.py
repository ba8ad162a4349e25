"""Shards that a stranger made: nothing in them runs, and whatever is not ours is refused before it is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray.data.extensions import ArrowPythonObjectType

from pipelines.data import index, manifest, shards
from pipelines.data.arrow_file import unsafe_content
from pipelines.data.images import DataError, read_rgb, write_png

FIXTURES = Path(__file__).parents[2] / "fixtures"
SIDE = 40


class Planted:
    """Unpickled, it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    """A row of an index."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    return {
        "name": "a", "height": SIDE, "width": SIDE, "image": str(tmp_path / "a.png"), "label": None, "noisy": None,
    }  # fmt: skip


@pytest.fixture
def shard(tmp_path: Path, item: dict[str, Any]) -> Path:
    shards.write(tmp_path / "a.arrow", [item])
    return tmp_path / "a.arrow"


def test_a_source_replaced_by_one_of_its_size_is_noticed(tmp_path: Path, item: dict[str, Any]) -> None:
    """Any edit of an uncompressed file is one; the time of the change is not looked at, since copying changes it."""
    source, shard = tmp_path / "a.bmp", tmp_path / "b.arrow"
    Image.fromarray(read_rgb(item["image"])).save(source)
    item |= {"image": str(source)}
    shards.write(shard, [item])
    assert shards.is_whole(shard, [item])
    os.utime(source, (0, 0))
    assert shards.is_whole(shard, [item])
    table = pa.Table.from_pylist([item], schema=index.SCHEMA)
    before, size = index.fingerprint(table), source.stat().st_size
    Image.fromarray(255 - read_rgb(source)).save(source)
    assert source.stat().st_size == size and index.fingerprint(table) == before
    assert not shards.is_whole(shard, [item])
    (tmp_path / "b.sources.json").write_text("[[1]]")
    assert not shards.is_whole(shard, [item])
    (tmp_path / "b.sources.json").unlink()  # as earlier versions left it
    assert shards.is_whole(shard, [item])


def rewritten(path: Path, change: Callable[[pa.RecordBatch], pa.RecordBatch], **options: Any) -> None:
    """Write the shard's records anew after a change."""
    with pa.ipc.open_file(path) as reader:
        records = [change(reader.get_batch(n)) for n in range(reader.num_record_batches)]
    with pa.ipc.new_file(path, records[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for record in records:
            writer.write_batch(record)


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=f"^{path}: .*{message}.*d2sm prepare") as error:
        shards.open_stored(shards.place(path, "image", 0))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=message):
        shards.source_bytes(shards.place(path, "image", 0))


def marked(name: str, kind: str, content: bytes, inner: pa.DataType) -> pa.Field:
    """A field as a file declares one of an extension type."""
    return pa.field(name, inner, metadata={"ARROW:extension:name": kind, "ARROW:extension:metadata": content})


def test_pickled_objects_are_not_unpickled(shard: Path, item: dict[str, Any], tmp_path: Path) -> None:
    """Neither by a reader nor by `prepare`, which checks the shards that are there and writes bad ones anew."""
    trace = tmp_path / "ran"
    column = pa.ExtensionArray.from_storage(
        ArrowPythonObjectType(), pa.array([pickle.dumps(Planted(trace))], pa.large_binary())
    )
    rewritten(shard, lambda record: record.set_column(0, "name", column))
    with pa.ipc.open_file(shard) as reader:
        reader.get_batch(0)["name"][0].as_py()  # the attack itself works
    assert trace.exists()
    trace.rmdir()
    refused(shard, "extension type")
    assert not shards.is_whole(shard, [item])
    assert not trace.exists()


@pytest.mark.parametrize("nested", [False, True])
def test_the_metadata_of_a_column_is_not_unpickled(shard: Path, tmp_path: Path, nested: bool) -> None:
    """Some versions of Ray unpickle the shape of a tensor as soon as a file is opened."""
    trace = tmp_path / "ran"
    field = marked("name", "ray.data.arrow_tensor", pickle.dumps(Planted(trace)), pa.list_(pa.int64()))
    field = pa.field("name", pa.list_(pa.struct([field]))) if nested else field
    with pa.ipc.new_file(shard, pa.schema([field, *list(shards.SCHEMA)[1:]])):
        pass
    refused(shard, "extension type")
    assert not trace.exists()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_records_are_refused(shard: Path, codec: str) -> None:
    """10 MB in a file of kilobytes."""
    zeros = pa.array([b"\0" * 10**7], pa.binary())
    rewritten(shard, lambda record: record.set_column(3, "image", zeros), compression=codec)
    assert shard.stat().st_size < 10**5
    refused(shard, "compressed")


def replaced(name: str, values: list[Any]) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """A change: another value of a column."""

    def change(record: pa.RecordBatch) -> pa.RecordBatch:
        at = shards.SCHEMA.get_field_index(name)
        return record.set_column(at, name, pa.array(values, shards.SCHEMA.field(name).type))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.drop_columns(["noisy"]), "its columns are not those"),
        (lambda record: record.rename_columns(["n", *record.schema.names[1:]]), "its columns are not those"),
        (lambda record: record.set_column(1, "height", pa.array([1.5])), "its columns are not those"),
        (lambda record: record.set_column(0, "name", pa.array(["a"]).dictionary_encode()), "dictionary"),
        (lambda record: record.slice(0, 0), "holds 0 items"),
        (replaced("height", [None]), "lacks a whole image"),
        (replaced("height", [-SIDE]), "lacks a whole image"),
        (replaced("height", [2**31 - 1]), "lacks a whole image"),
        (replaced("image", [b"short"]), "lacks a whole image"),
        (replaced("image_checks", [[1]]), "lacks a whole image"),
        (replaced("image_checks", [None]), "lacks a whole image"),
    ],
)
def test_a_shard_that_holds_something_else(
    shard: Path, item: dict[str, Any], change: Callable[[pa.RecordBatch], pa.RecordBatch], message: str
) -> None:
    rewritten(shard, change)
    with pytest.raises(DataError, match=f"^{shard}: .*{message}.*d2sm prepare"):
        shards.open_stored(shards.place(shard, "image", 0))
    assert not shards.is_whole(shard, [item])


def test_offsets_that_lead_out_of_the_file(shard: Path) -> None:
    """Arrow follows them, to memory of others, unless it is asked to check them."""
    content = shard.read_bytes()
    image = SIDE * SIDE * 3
    at = content.index(struct.pack("<ii", 0, image))
    shard.write_bytes(content[:at] + struct.pack("<ii", 10**9, 2 * 10**9) + content[at + 8 :])
    refused(shard, "is damaged")


def test_shards_of_every_version_pass() -> None:
    found = list(FIXTURES.glob("*/prepared/*/*.arrow"))
    assert found
    assert [unsafe_content(path) for path in found] == [""] * len(found)


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Path]:
    (source,) = FIXTURES.glob("57e4321/prepared")
    yield Path(shutil.copytree(source, tmp_path / "prepared"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("file",), "/etc/passwd"),
        (("file",), "../../secret.arrow"),
        (("file",), "train/\x1b[2J.arrow"),
        (("bytes",), -1),
        (("photographs", 0, "name"), "../../outside"),
        (("photographs", 0, "name"), "/outside"),
        (("photographs", 0, "name"), "\x1b]0;title\x07"),
        (("photographs", 0, "height"), 2**31),
        (("photographs", 0, "width"), 0),
    ],
)
def test_a_manifest_names_nothing_outside_its_folder(prepared: Path, place: tuple[Any, ...], value: object) -> None:
    path = prepared / manifest.MANIFEST
    tree = json.loads(path.read_text())
    node = tree["shards"]["train"][0]
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    path.write_text(json.dumps(tree))
    where = r"\.".join(map(str, place))
    with pytest.raises(DataError, match=rf"^{path}: shards\.train\.0\.{where}: .*new folder") as error:
        manifest.load(prepared)
    assert str(error.value).isprintable()
