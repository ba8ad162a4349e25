"""A prepared data set: the crops of the PNG files bit for bit, nothing written twice, one line for what is wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data import DataContext

from pipelines.config import Config, ConfigError
from pipelines.data import index, plan, shards, stream
from pipelines.data import manifest as prepared
from pipelines.data.images import DataError, ImageError, read_labels, read_rgb, write_png
from pipelines.data.items import read
from pipelines.data.manifest import MANIFEST, STARTED, Manifest
from pipelines.evaluate import evaluate
from pipelines.prepare import Prepared, prepare
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.train import fit
from pipelines.training.finite import TrainingError
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.crops import begun, reference, same, side_by_side
from tests.helpers.equality import same_run

TWO = 0.16  # MB: two of the scenes a shard


def test_a_source_that_is_prepared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / STARTED).write_text("{}")
    for source in (tmp_path / "set", "~/set"):
        with pytest.raises(DataError, match=f"{source}: is a prepared set already"):
            prepare(source, tmp_path / "new")


@pytest.fixture(scope="module")
def made(ray_session: None, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(scenes_root, tmp_path_factory.mktemp("prepared") / "set", shard_mb=TWO, quiet=True)


@pytest.fixture
def copied(made: Prepared, tmp_path: Path) -> Path:
    """A set that may be spoilt."""
    return shutil.copytree(made.root, tmp_path / "copy")


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Which files there are, and when each was written."""
    return {str(p.relative_to(root)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(root.rglob("*.arrow"))}


def test_the_manifest_says_what_there_is(made: Prepared, scenes_root: Path) -> None:
    assert (made.photographs, made.shards, made.written) == (8, 4, 4)
    manifest = prepared.load(made.root)
    assert (manifest.version, manifest.source, manifest.layout) == (1, str(scenes_root), "cityscapes")
    assert (manifest.compression, manifest.tile, manifest.rows_a_check) == ("none", "whole images", 32)
    assert [len(shard.photographs) for shard in manifest.shards["train"]] == [2, 2, 2]
    for shard in (*manifest.shards["train"], *manifest.shards["val"]):
        listed = subprocess.run(["sha256sum", made.root / shard.file], capture_output=True, text=True, check=True)
        assert listed.stdout.split()[0] == shard.sha256
        assert (made.root / shard.file).stat().st_size == shard.bytes
    assert not (made.root / STARTED).exists()
    assert not list(made.root.rglob("*.partial"))


def test_a_shard_may_take_any_time(made: Prepared) -> None:
    """Ray's guard against hangs, with half an hour by default, is off."""
    assert DataContext.get_current().execution_no_progress_timeout_s == -1


NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="./"), min_size=1)
SIDES = st.integers(1, 2**31 - 1)
PHOTOGRAPHS = st.builds(
    prepared.StoredItem,
    name=NAMES,
    height=SIDES,
    width=SIDES,
    label=st.booleans(),
    noisy=st.booleans(),
)
SHARDS = st.builds(
    prepared.Shard, file=NAMES, bytes=st.integers(0, 2**63), sha256=NAMES, photographs=st.lists(PHOTOGRAPHS).map(tuple)
)


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        Manifest,
        version=st.just(1),
        source=NAMES,
        layout=NAMES,
        fingerprints=st.dictionaries(NAMES, NAMES),
        shard_mb=st.floats(0.1, 1e4),
        shards=st.dictionaries(NAMES, st.lists(SHARDS, max_size=2).map(tuple)),
    )
)
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
    root = tmp_path_factory.mktemp("manifest")
    manifest.save(root / MANIFEST)
    assert prepared.load(root) == manifest


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("labels", ["required", "optional", "ignore"])
def test_the_index_is_that_of_the_source(made: Prepared, scenes_root: Path, split: str, labels: str) -> None:
    there, here = (index.index(root, split, labels=labels) for root in (made.root, scenes_root))
    for name in ("name", "height", "width"):
        assert there[name].equals(here[name])
    assert there["label"].is_null().equals(here["label"].is_null())
    assert index.fingerprint(there) == index.fingerprint(here)
    assert index.fingerprint(there.slice(0, 1)) == index.fingerprint(here.slice(0, 1))


def test_every_pixel_is_that_of_the_source(made: Prepared, scenes_root: Path) -> None:
    there, here = (index.index(root, "train").to_pylist() for root in (made.root, scenes_root))
    for one, other in zip(there, here, strict=True):
        found = read(one)
        np.testing.assert_array_equal(found.clean, read_rgb(other["image"]))
        np.testing.assert_array_equal(found.label, read_labels(other["label"]))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 500),
    size=st.integers(16, 96),
    each=st.integers(1, 3),
    part=st.tuples(st.integers(0, 17), st.integers(1, 18)),
)
def test_crops_are_equal_bit_for_bit(
    made: Prepared, scenes_root: Path, seed: int, epoch: int, size: int, each: int, part: tuple[int, int]
) -> None:
    """Any seed, epoch, size and run of the plan's rows, with labels."""
    config = Config().replace(
        {"train.seed": seed, "data.crop_size": size, "data.crops_per_image": each, "loss.weight": 0,
         "loss.cross_entropy": 1, "loss.segmenter": "espnet-scenes"}
    )  # fmt: skip
    rows = plan.epoch_table(config, 6, epoch).slice(*part)
    if rows.num_rows:
        found, wanted = (
            stream.cut_crops(config, index.index(root, "train"), rows)[0] for root in (made.root, scenes_root)
        )
        assert found.keys() == wanted.keys() == {"clean", "label", "sigma", "seed"}
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.slow
def test_the_workers_get_the_crops_of_the_files(made: Prepared, scenes_root: Path, tmp_path: Path) -> None:
    """Through Ray Data, two workers, from the start and from within an epoch."""
    config = tiny_config(made.root, tmp_path, data__shuffle_images=3)
    items = index.index(made.root, "train", labels="ignore")
    expected = reference(config, index.index(scenes_root, "train", labels="ignore"))
    found, later = side_by_side([begun(config, items), begun(config.replace({"train.num_workers": 1}), items, first=4)])
    same(found, expected)
    same(later, expected[4:])


def test_a_run_goes_on_from_either(made: Prepared, scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, train__name="either")
    folder = RunFolder.of(config)
    bundle_of(folder.path / checkpoint.name_of(2), config)
    for root in (scenes_root, made.root):
        items = index.index(root, "train", labels="optional")
        folder.open(config.replace({"data.root": str(root)}), index.fingerprint(items))
    assert folder.latest() is not None
    with pytest.raises(ConfigError, match="either.*other data"):
        folder.open(config, index.fingerprint(index.index(scenes_root, "val", labels="optional")))


@pytest.mark.slow
@pytest.mark.long
def test_begun_on_files_and_ended_on_shards(made: Prepared, scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, train__name="whole", train__checkpoint_every=2)
    whole = fit(config, quiet=True)
    parts = config.replace({"train.name": "parts"})
    fit(parts.replace({"train.max_steps": 4}), quiet=True)
    same_run(fit(parts.replace({"data.root": str(made.root)}), quiet=True), whole)
    for path in (spoilt := shutil.copytree(made.root, tmp_path / "spoilt")).glob("train/*.arrow"):
        flip(path, path.stat().st_size // 4)
    with pytest.raises(TrainingError, match=rf"bad: {spoilt}/train/0000\d.arrow: .*are damaged.*d2sm prepare") as error:
        fit(config.replace({"train.name": "bad", "data.root": str(spoilt)}), quiet=True)
    assert "\n" not in str(error.value)


def test_evaluation_gives_the_same_numbers(made: Prepared, scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(
        scenes_root, tmp_path, evaluate__segmenter="tests.helpers.segmenters:segmenter", evaluate__actors=0
    )
    bundle = bundle_of(tmp_path / "step-00000000", config)
    prepared_too = config.replace({"data.root": str(made.root)})
    assert evaluate(bundle, prepared_too, quiet=True) == evaluate(bundle, config, quiet=True)


def pictures(root: Path, *, pairs: bool) -> Path:
    """Four small photographs, without splits."""
    rng = np.random.default_rng(0)
    for number in range(4):
        clean = rng.integers(0, 200, (50, 70 + number, 3), dtype=np.uint8)
        write_png(root / ("clean" if pairs else ".") / f"{number}.png", clean)
        if pairs:
            write_png(root / f"noisy/{number}.png", clean + np.uint8(7))
    return root


@pytest.mark.parametrize("layout", ["folder", "pairs"])
def test_the_other_layouts(ray_session: None, tmp_path: Path, layout: str) -> None:
    """Their layout is found; a folder without splits is stored as the part that is trained on and the one held out."""
    source = pictures(tmp_path / "source", pairs=layout == "pairs")
    done = prepare(source, tmp_path / "set", quiet=True)
    assert (done.photographs, done.shards, done.layout) == (4, 2, layout)
    for split in ("train", "val"):
        there, here = (index.index(root, split, layout=layout) for root in (done.root, source))
        assert index.fingerprint(there) == index.fingerprint(here)
        for one, other in zip(there.to_pylist(), here.to_pylist(), strict=True):
            found = read(one)
            np.testing.assert_array_equal(found.clean, read_rgb(other["image"]))
            assert (found.noisy is None) == (other["noisy"] is None)
            if found.noisy is not None:
                np.testing.assert_array_equal(found.noisy, read_rgb(other["noisy"]))
    with pytest.raises(DataError, match=f"data.layout={layout}, not cityscapes"):
        index.index(done.root, "train")


def test_an_earlier_versions_set_of_a_folder_without_splits(ray_session: None, tmp_path: Path) -> None:
    """Its splits share their shards, so one would be evaluated on what it was trained on: a part is held out."""
    pictures(tmp_path / "source/train", pairs=False)
    done = prepare(tmp_path / "source", tmp_path / "set", splits=["train"], quiet=True)
    tree = json.loads((done.root / MANIFEST).read_text())
    for part in ("shards", "fingerprints"):
        tree[part]["val"] = tree[part]["train"]
    (done.root / MANIFEST).write_text(json.dumps(tree))
    train, val = (index.index(done.root, split, layout="folder") for split in ("train", "val"))
    whole = index.index(done.root, "val", layout="folder", hold_out=False)
    assert (train.num_rows, val.num_rows, whole.num_rows) == (3, 1, 4)
    assert {*train["name"].to_pylist(), *val["name"].to_pylist()} == {*whole["name"].to_pylist()}


def test_a_split_without_a_name_is_refused(tmp_path: Path) -> None:
    """Its shards would lie outside the set."""
    pictures(tmp_path / "source", pairs=False)
    with pytest.raises(DataError, match="splits=''"):
        prepare(tmp_path / "source", tmp_path / "set", splits=[""], quiet=True)
    assert not (tmp_path / "set").exists()


def test_a_complete_set_is_left_as_it_is(made: Prepared, scenes_root: Path) -> None:
    before = state(made.root)
    again = prepare(scenes_root, made.root, shard_mb=TWO, quiet=True)
    assert (again.written, again.shards) == (0, 4)
    assert state(made.root) == before


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))


def test_damage_is_seen_where_it_is_read_and_mended(copied: Path, scenes_root: Path) -> None:
    """A byte of the second photograph's pixels; the first, and the rows before it, stay usable."""
    path = copied / "train/00000.arrow"
    whole = path.read_bytes()
    items = index.index(copied, "train").to_pylist()
    pixels = read(items[1]).clean
    flip(path, whole.index(pixels.tobytes()) + pixels.nbytes - 1)
    stored = shards.open_stored(items[1]["image"])
    assert stored is not None
    np.testing.assert_array_equal(stored[10:64, 20:40], pixels[10:64, 20:40])
    with pytest.raises(DataError, match=rf"{path}: .*image.*rows 64 onwards are damaged.*d2sm prepare") as error:
        stored[10:65, 20:40]
    assert "\n" not in str(error.value)
    read(items[0])
    before = state(copied)
    assert prepare(scenes_root, copied, shard_mb=TWO, quiet=True).written == 1
    changed = {file for file, now in state(copied).items() if now != before[file]}
    assert changed == {"train/00000.arrow"}
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(read(items[1]).clean, pixels)


def test_damage_stops_even_a_run_that_skips_bad_images(copied: Path, tmp_path: Path) -> None:
    """Else it would train on other photographs than the plan's without need: the source has them."""
    items = index.index(copied, "train", labels="ignore")
    path = copied / "train/00001.arrow"
    flip(path, path.read_bytes().index(read(items.to_pylist()[2]).clean.tobytes()) + 100)
    config = tiny_config(copied, tmp_path, data__bad_images="skip", data__crop_size=96)
    with pytest.raises(DataError, match=f"{path}: .*damaged"):
        stream.cut_crops(config, items, plan.epoch_table(config, 6, 0))


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_a_shard_that_was_cut_short(copied: Path, length: int) -> None:
    path = copied / "train/00001.arrow"
    where = index.index(copied, "train")["image"][2].as_py()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{path}: has \d+ bytes, not \d+; run `d2sm prepare`"):
        index.index(copied, "train")
    with pytest.raises(DataError, match=rf"{path}: is damaged .*d2sm prepare"):
        shards.open_stored(where)


def test_a_shard_that_is_missing(copied: Path) -> None:
    path = copied / "train/00002.arrow"
    where = index.index(copied, "train")["image"][5].as_py()
    path.unlink()
    for refused in (lambda: index.index(copied, "train"), lambda: shards.open_stored(where)):
        with pytest.raises(DataError, match=f"{path}: No such file.*d2sm prepare"):
            refused()
    index.index(copied, "val")  # the other split is whole


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "is of version 2, not 1; .*new folder"),
        ({"shards": {"train": [{"file": 3}]}}, r"shards.train.0.file: .*new folder"),
        ({"more": 1}, "more: .*new folder"),
    ],
)
def test_a_manifest_that_says_something_else(copied: Path, change: dict[str, object], message: str) -> None:
    path = copied / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=f"{path}: {message}") as error:
        index.index(copied, "train")
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_no_json(copied: Path) -> None:
    (copied / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=f"{copied / MANIFEST}: .*JSON"):
        index.index(copied, "train")


def test_a_set_that_is_not_complete_or_has_no_such_split(copied: Path) -> None:
    with pytest.raises(DataError, match="split 'vall' .*did you mean val"):
        index.index(copied, "vall")
    (copied / MANIFEST).rename(copied / STARTED)
    with pytest.raises(DataError, match=f"{copied}: is not complete; .*d2sm prepare"):
        index.index(copied, "train")


@pytest.mark.parametrize("size", [math.nan, math.inf, 0, -1])
def test_a_shard_has_a_size(size: float, scenes_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"shard_mb={size:g}: give the size"):
        prepare(scenes_root, tmp_path / "set", shard_mb=size)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_place_to_prepare(copied: Path, scenes_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{copied}: is a prepared set"):
        prepare(copied, tmp_path / "new")
    with pytest.raises(DataError, match=f"{scenes_root}: .*new or empty folder"):
        prepare(scenes_root, scenes_root)
    with pytest.raises(DataError, match=f"{copied}: .*shard_mb 0.16, not 256"):
        prepare(scenes_root, copied, shard_mb=256)
    with pytest.raises(DataError, match=f"{copied}: .*splits train val, not train"):
        prepare(scenes_root, copied, splits=["train"], shard_mb=TWO)
    assert not (tmp_path / "new").exists()


def test_a_source_that_changed(copied: Path, scenes_root: Path, tmp_path: Path) -> None:
    source = shutil.copytree(scenes_root, tmp_path / "scenes")
    path = sorted(source.glob("leftImg8bit/train/*/*.png"))[3]
    write_png(path, 255 - read_rgb(path))
    with pytest.raises(
        DataError, match=rf"{source}: changed since {copied} was begun \(fingerprint .*new folder"
    ) as error:
        prepare(source, copied, shard_mb=TWO)
    assert "\n" not in str(error.value)


def test_a_stopped_preparation_goes_on(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    """Stopped by a bad photograph; what was written before is not written again."""
    source = shutil.copytree(scenes_root, tmp_path / "scenes")
    bad = sorted(source.glob("leftImg8bit/train/*/*.png"))[5]
    flip(bad, 2000)
    with pytest.raises(DataError, match=f"{bad}: is damaged") as error:
        prepare(source, tmp_path / "set", shard_mb=TWO, quiet=True)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="is not complete"):
        index.index(tmp_path / "set", "train")
    before = state(tmp_path / "set")
    assert "train/00002.arrow" not in before
    flip(bad, 2000)
    done = prepare(source, tmp_path / "set", shard_mb=TWO, quiet=True)
    assert done.written == 4 - len(before)
    assert {file: now for file, now in state(tmp_path / "set").items() if file in before} == before


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_preparation_goes_on(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    """SIGKILL to the whole group, in the middle of a shard."""
    source = tmp_path / "source"
    files = sorted(scenes_root.glob("leftImg8bit/train/*/*.png"))
    source.mkdir()
    for number in range(600):
        os.link(files[number % 6], source / f"{number:04d}.png")
    target = tmp_path / "set"
    call = [sys.executable, "-m", "cluster.cli", "prepare", str(source), str(target), "--layout", "folder",
            "--splits", "train", "--shard-mb", "1"]  # fmt: skip
    process = subprocess.Popen(call, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 180
        while len(state(target) if target.exists() else {}) < 5:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end, "it wrote nothing"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(5)  # tasks in processes of their own end when they miss their node
    before = state(target)
    with pytest.raises(DataError, match="is not complete"):
        index.index(target, "train", layout="folder")
    done = prepare(source, target, layout="folder", splits=["train"], shard_mb=1, quiet=True)
    assert 5 <= len(before) < done.shards
    assert done.written == done.shards - len(before)
    assert {file: now for file, now in state(target).items() if file in before} == before
    assert not list(target.rglob("*.partial"))
    items = index.index(target, "train", layout="folder")
    np.testing.assert_array_equal(read(items.to_pylist()[599]).clean, read_rgb(files[599 % 6]))


def test_no_room(scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(DataError, match=f"{tmp_path / 'set'}: .*0.00059 GB.*0.0001 GB"):
        prepare(scenes_root, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_photograph_that_changes_while_it_is_stored(scenes_root: Path, tmp_path: Path) -> None:
    """Nothing half is left."""
    item = index.index(scenes_root, "train").to_pylist()[0]
    with pytest.raises(DataError, match=f"{item['image']}: changed"):
        shards.write(tmp_path / "s/0.arrow", [item, {**item, "height": 95}])
    with pytest.raises(ImageError, match="gone.png: no such file"):
        shards.write(tmp_path / "s/0.arrow", [item, {**item, "image": str(tmp_path / "gone.png")}])
    assert not list((tmp_path / "s").iterdir())


def test_one_process_sees_a_shard_that_was_written_anew(scenes_root: Path, tmp_path: Path) -> None:
    first, second = index.index(scenes_root, "train", labels="ignore").to_pylist()[:2]
    where = shards.place(tmp_path / "0.arrow", "image", 0)
    for item in (first, second):
        shards.write(tmp_path / "0.arrow", [item])
        np.testing.assert_array_equal(shards.open_stored(where)[:, :], read_rgb(item["image"]))
    assert shards.source_bytes(where) == os.stat(second["image"]).st_size
    for absent in (shards.place(tmp_path / "0.arrow", "label", 0), shards.place(tmp_path / "0.arrow", "image", 7)):
        with pytest.raises(DataError, match="d2sm prepare"):
            shards.open_stored(absent)


def test_a_table_of_the_index_is_a_table(made: Prepared) -> None:
    table = index.index(made.root, "train")
    assert table.schema.equals(index.SCHEMA)
    assert isinstance(table, pa.Table)
    assert index.skipped_images(table) == []
