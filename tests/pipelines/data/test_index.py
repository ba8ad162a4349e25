"""The index of data sets of each layout: real folders of real files, complete and faulty."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.config import Config
from pipelines.data import splits
from pipelines.data.held_out import held_out
from pipelines.data.images import read_labels, write_png
from pipelines.data.index import SCHEMA, TRAIN_IDS, DataError, fingerprint, index, layout_of, skipped_images, undivided


def picture(path: Path, height: int = 6, width: int = 8) -> Path:
    write_png(path, np.full((height, width, 3), 90, np.uint8))
    return path


def frame(root: Path, name: str, split: str = "train", *, label: tuple[int, int] | None = (6, 8)) -> Path:
    if label:
        write_png(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", np.full(label, 7, np.uint8))
    return picture(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png")


@pytest.fixture
def city(tmp_path: Path) -> Path:
    root = tmp_path / "city"
    for name in ("ulm/ulm_1", "aachen/aachen_2", "aachen/aachen_1"):
        frame(root, name)
    frame(root, "bonn/bonn_1", "val")
    return root


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        index(*args, **kwargs)
    line = str(caught.value)
    assert ("\n" not in line and ";" in line) or "only mounted" in line, line
    return line


def names(table: pa.Table) -> list[str]:
    return [str(name) for name in table["name"].to_pylist()]


def test_cityscapes_rows(city: Path) -> None:
    table = index(city, "train")
    assert table.schema.equals(SCHEMA) and names(table) == ["aachen/aachen_1", "aachen/aachen_2", "ulm/ulm_1"]
    first = table.to_pylist()[0]
    assert first == {
        "name": "aachen/aachen_1",
        "image": str(city / "leftImg8bit/train/aachen/aachen_1_leftImg8bit.png"),
        "label": str(city / "gtFine/train/aachen/aachen_1_gtFine_labelIds.png"),
        "noisy": None,
        "height": 6,
        "width": 8,
    }
    assert json.loads(table.schema.metadata[b"skipped"]) == []


@pytest.mark.parametrize(
    ("data", "split", "rows", "size"),
    [
        ("camvid", "train", 184, (360, 480)),
        ("camvid", "val", 51, (360, 480)),
        ("cityscapes-mini", "train", 8, (1024, 2048)),
        ("cityscapes-mini", "val", 1, (1024, 2048)),
    ],
)
def test_real_data_sets(shared: Path, data: str, split: str, rows: int, size: tuple[int, int]) -> None:
    table = index(shared / "data" / data, split)
    assert table.num_rows == rows == len(set(names(table)))
    assert {(row["height"], row["width"]) for row in table.to_pylist()} == {size}
    ids = np.unique(read_labels(table["label"][0].as_py()))
    assert set(ids) <= {*range(19), 255} and len(ids) > 5


def test_relative_root_gives_absolute_paths(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(city / "gtFine")
    assert index("..", "train").equals(index(city, "train"))


def test_missing_and_empty_roots(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none", "train")
    assert "is a file" in refusal(picture(tmp_path / "a.png"), "train")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty", "train")
    assert "s3://bucket/city: only mounted" in refusal("s3://bucket/city", "train")


@pytest.mark.parametrize("split", ["..", ".", "../city", "/tmp", "a\\b"])
@pytest.mark.parametrize("layout", ["cityscapes", "folder", "pairs"])
def test_split_cannot_leave_the_root(city: Path, split: str, layout: Any) -> None:
    assert repr(split) in refusal(city, split, layout=layout)


def test_unknown_split_and_options_name_the_nearest(city: Path) -> None:
    line = refusal(city, "trian")
    assert "train, val" in line and "did you mean train?" in line
    assert "unknown" in refusal(city, "")
    assert "did you mean folder?" in refusal(city, "train", layout="folders")
    assert "did you mean skip?" in refusal(city, "train", on_bad="skp")
    assert "did you mean optional?" in refusal(city, "train", labels="optionl")


def test_wrong_layout_says_which_fits(city: Path, tmp_path: Path) -> None:
    picture(tmp_path / "plain/a.png")
    picture(tmp_path / "two/clean/a.png")
    picture(tmp_path / "two/noisy/a.png")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/readme.md").write_text("nothing here")
    line = refusal(tmp_path / "plain", "train")
    assert "looked for leftImg8bit/" in line and "found a.png" in line and "data.layout=folder fits" in line
    assert "data.layout=pairs fits" in refusal(tmp_path / "two", "train")
    assert "data.layout=pairs fits" in refusal(tmp_path / "two", "train", layout="folder")
    assert "data.layout=cityscapes fits" in refusal(city, "train", layout="folder")
    assert "data.layout=cityscapes fits" in refusal(city, "train", layout="pairs")
    assert "data.layout=folder fits" in refusal(tmp_path / "plain", "train", layout="pairs")
    assert "no layout fits" in refusal(tmp_path / "text", "train")
    assert "found readme.md" in refusal(tmp_path / "text", "train", layout="folder")


def test_root_one_level_off(city: Path, tmp_path: Path) -> None:
    assert f"give {city} as the root" in refusal(city / "leftImg8bit", "train")
    assert f"give {city} as the root" in refusal(tmp_path, "train")


def test_split_without_images(city: Path) -> None:
    (city / "leftImg8bit/test/berlin").mkdir(parents=True)
    assert "only berlin/" in refusal(city, "test")


def test_image_without_label(city: Path) -> None:
    frame(city, "ulm/ulm_2", label=None)
    frame(city, "ulm/ulm_3", label=None)
    line = refusal(city, "train")
    assert "ulm_2_leftImg8bit.png: has no label" in line and "(and 1 more)" in line
    assert str(city / "gtFine/train/ulm/ulm_2_gtFine_labelIds.png") in line
    optional = index(city, "train", labels="optional")
    assert [label is None for label in optional["label"].to_pylist()] == [False, False, False, True, True]
    assert index(city, "train", labels="ignore")["label"].null_count == 5
    shutil.rmtree(city / "gtFine")
    assert "(and 4 more)" in refusal(city, "train")
    assert index(city, "train", labels="optional")["label"].null_count == 5


def test_label_without_image_is_left_out(city: Path) -> None:
    (city / "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png").unlink()
    assert names(index(city, "train")) == ["aachen/aachen_1", "aachen/aachen_2"]


@pytest.mark.parametrize("suffix", [".PNG", ".Png"])
def test_cityscapes_files_in_upper_case_are_taken(city: Path, suffix: str) -> None:
    for path in (
        city / "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png",
        city / "gtFine/train/aachen/aachen_2_gtFine_labelIds.png",
    ):
        path.rename(path.with_suffix(suffix))
    table = index(city, "train")
    assert names(table) == ["aachen/aachen_1", "aachen/aachen_2", "ulm/ulm_1"] and table["label"].null_count == 0


def test_cityscapes_photographs_of_other_names_are_listed(city: Path) -> None:
    other = picture(city / "leftImg8bit/train/ulm/ulm_7.png")
    (city / "leftImg8bit/train/ulm/notes.txt").write_text("no photograph")
    table = index(city, "train")
    assert len(names(table)) == 3
    assert skipped_images(table) == [
        [
            "leftImg8bit/train/ulm/ulm_7.png",
            f"{other}: is not named *_leftImg8bit.png, so it belongs to no split; rename it, or remove it",
        ]
    ]


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_label_of_another_size(city: Path, on_bad: Any) -> None:
    image = frame(city, "ulm/ulm_2", label=(3, 4))
    line = refusal(city, "train", on_bad=on_bad)
    assert "is 3x4" in line and f"image {image} is 6x8" in line
    assert index(city, "train", labels="ignore").num_rows == 4


def test_bad_files_stop_or_are_skipped_and_listed(city: Path) -> None:
    images = city / "leftImg8bit/train/aachen"
    cut, text = images / "aachen_1_leftImg8bit.png", images / "aachen_2_leftImg8bit.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    text.write_text("not a picture")
    line = refusal(city, "train")
    assert f"{cut}: is truncated" in line and "(and 1 more)" in line and "data.bad_images=skip" in line
    table = index(city, "train", on_bad="skip")
    assert names(table) == ["ulm/ulm_1"]
    skipped = json.loads(table.slice(0, 1).schema.metadata[b"skipped"])
    assert [(bad["name"], bad["file"]) for bad in skipped] == [
        ("aachen/aachen_1", str(cut)),
        ("aachen/aachen_2", str(text)),
    ]
    assert "not a PNG or JPEG" in skipped[1]["why"]


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "P"])
def test_wrong_modes_show_at_once(city: Path, mode: str) -> None:
    path = city / "leftImg8bit/train/aachen/aachen_1_leftImg8bit.png"
    Image.new(mode, (8, 6)).save(path)
    assert f"{path}: is " in refusal(city, "train") and "convert" in refusal(city, "train")
    assert index(city, "train", on_bad="skip").num_rows == 2


def test_colour_labels_show_at_once(city: Path) -> None:
    picture(city / "gtFine/train/aachen/aachen_1_gtFine_labelIds.png")
    assert "is 8-bit RGB, not 8-bit grey" in refusal(city, "train")


def test_nothing_usable_is_an_error_even_when_skipping(city: Path) -> None:
    (city / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png").write_bytes(b"")
    line = refusal(city, "val", on_bad="skip")
    assert "bonn_1_leftImg8bit.png: is empty" in line and str(city) in line.split(";")[1]


def test_folder_takes_all_depths_and_kinds(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    picture(root / "b.png", 3, 5)
    picture(root / "a/deep/c.PNG")
    picture(root / ".hidden/x.png")
    picture(root / "._b.png")
    Image.new("RGB", (7, 4)).save(root / "a/d.jpeg")
    (root / "notes.txt").write_text("not taken")
    table = index(root, "", layout="folder")
    assert names(table) == ["a/d", "a/deep/c", "b"]
    assert table["height"].to_pylist() == [4, 6, 3] and table["width"].to_pylist() == [7, 8, 5]
    assert table["label"].null_count == table["noisy"].null_count == 3
    assert "has no labels" in refusal(root, "train", layout="folder", labels="required")


def test_folder_uses_the_split_where_there_is_one(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    picture(tmp_path / "val/b.png")
    assert names(index(tmp_path, "val", layout="folder")) == ["b"]
    assert names(index(tmp_path, "", layout="folder")) == ["train/a", "val/b"]
    line = refusal(tmp_path, "test", layout="folder")  # not silently all of train and val
    assert "train, val" in line


def test_a_root_without_splits_holds_a_part_out(tmp_path: Path) -> None:
    """By the names alone: "val" is a tenth, at least one, "train" the rest; sub-folders are no splits."""
    for number in range(24):
        picture(tmp_path / f"root/{'cats' if number % 2 else 'dogs'}/{number:02}.png")
    everything = index(tmp_path / "root", "", layout="folder")
    train, val = (index(tmp_path / "root", split, layout="folder") for split in ("train", "val"))
    assert len(names(val)) == 2 and sorted([*names(train), *names(val)]) == names(everything)
    assert (undivided(train), undivided(val), undivided(everything)) == (24, 24, None)
    assert names(index(tmp_path / "root", "val", layout="folder", hold_out=False)) == names(everything)
    (tmp_path / "root").rename(tmp_path / "moved")
    assert names(index(tmp_path / "moved", "val", layout="folder")) == names(val)
    line = refusal(tmp_path / "moved", "trian", layout="folder")
    assert "did you mean train?" in line and "no folders of splits" in line
    kept = held_out([f"{number}" for number in range(100)])
    assert len(kept) == 10 and kept != held_out([f"{number}" for number in range(100)], seed=1)
    assert len(kept & held_out([f"{number}" for number in range(110)])) >= 9
    assert len(held_out(["a", "b"])) == 1


def test_a_single_photograph_is_trained_on_or_refused(tmp_path: Path) -> None:
    picture(tmp_path / "root/a.png")
    assert names(index(tmp_path / "root", "train", layout="folder")) == ["a"]
    assert "single photograph" in refusal(tmp_path / "root", "val", layout="folder")


@pytest.mark.parametrize(("train", "val"), [("Train", "Val"), ("training", "validation")])
def test_splits_by_another_name_are_no_mere_folders(tmp_path: Path, train: str, val: str) -> None:
    picture(tmp_path / train / "a.png")
    picture(tmp_path / val / "b.png")
    line = refusal(tmp_path, "train", layout="folder")
    assert f"{tmp_path}: has no folder train/" in line and f"data.train_split={train} data.val_split={val}" in line
    assert names(index(tmp_path, val, layout="folder")) == ["b"]


def test_the_layout_is_found_where_only_another_one_fits(city: Path, tmp_path: Path) -> None:
    picture(tmp_path / "flat/a.png")
    for side in ("clean", "noisy"):
        picture(tmp_path / "two" / side / "a.png")
    (tmp_path / "empty").mkdir()
    assert layout_of(tmp_path / "flat", "cityscapes") == "folder"
    assert layout_of(tmp_path / "two", "cityscapes") == "pairs"
    for root in (city, city / "leftImg8bit", tmp_path, tmp_path / "empty", tmp_path / "none", "s3://a/b", ""):
        assert layout_of(root, "cityscapes") == "cityscapes"  # kept: it fits, or reading it says what is wrong
    assert layout_of(tmp_path / "two", "folder") == "folder"  # one that was given is kept too


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    picture(tmp_path / "store/a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/linked").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "root")
    assert names(index(tmp_path / "root", "train", layout="folder")) == ["linked/a"]


def test_colliding_and_unprintable_names(tmp_path: Path) -> None:
    picture(tmp_path / "one/a.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "one/a.jpg")
    line = refusal(tmp_path / "one", "train", layout="folder")
    assert "a.png: collides with a.jpg" in line
    picture(tmp_path / "two/a\nb.png")
    assert "unprintable" in refusal(tmp_path / "two", "train", layout="folder")


@pytest.mark.parametrize("below", ["", "val"])
def test_pairs(tmp_path: Path, below: str) -> None:
    base = tmp_path / "root" / below
    for side in ("clean", "noisy"):
        picture(base / side / "x/a.png")
        picture(base / side / "b.png")
    table = index(tmp_path / "root", below, layout="pairs")
    assert names(table) == ["b", "x/a"] and table["label"].null_count == 2
    assert table["image"][1].as_py() == str(base / "clean/x/a.png")
    assert table["noisy"][1].as_py() == str(base / "noisy/x/a.png")
    if below:
        assert "did you mean val?" in refusal(tmp_path / "root", "vla", layout="pairs")


@pytest.mark.parametrize("side", ["clean", "noisy"])
def test_pairs_without_partner_or_of_other_size(tmp_path: Path, side: str) -> None:
    for name in ("clean", "noisy"):
        picture(tmp_path / name / "a.png")
    alone = picture(tmp_path / side / "b.png")
    other = {"clean": "noisy", "noisy": "clean"}[side]
    assert f"{alone}: has no partner in {tmp_path / other}" in refusal(tmp_path, "", layout="pairs")
    picture(tmp_path / other / "b.png", 8, 6)
    assert "b.png: is " in refusal(tmp_path, "", layout="pairs")


def test_several_pairs_of_a_photograph(tmp_path: Path) -> None:
    for name in ("a", "x/b", "c"):
        picture(tmp_path / f"clean/{name}.png")
    for name in ("a/first.png", "a/second.jpg", "x/b/1.png", "x/b/2.png", "x/b/3.png", "c.png"):
        (tmp_path / "noisy" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "noisy" / name)
    table = index(tmp_path, "", layout="pairs")
    assert names(table) == ["a/first", "a/second", "c", "x/b/1", "x/b/2", "x/b/3"]
    assert [Path(path).relative_to(tmp_path / "clean").as_posix() for path in table["image"].to_pylist()] == [
        "a.png", "a.png", "c.png", "x/b.png", "x/b.png", "x/b.png",
    ]  # fmt: skip
    assert Path(table["noisy"][1].as_py()) == tmp_path / "noisy/a/second.jpg"
    alone = picture(tmp_path / "noisy/d/1.png")
    assert f"{alone}: has no partner in {tmp_path / 'clean'}" in refusal(tmp_path, "", layout="pairs")
    alone.unlink()
    lonely = picture(tmp_path / "clean/e.png")
    line = refusal(tmp_path, "", layout="pairs")
    assert f"{lonely}: has no partner in {tmp_path / 'noisy'}, nor a folder e/ of them" in line


def test_all_pairs_of_a_photograph_are_held_out_together(tmp_path: Path) -> None:
    """The photographs that are held out are those of pairs of one: which ones follows from their names."""
    for number in range(20):
        picture(tmp_path / f"one/clean/p{number}.png")
        picture(tmp_path / f"one/noisy/p{number}.png")
        picture(tmp_path / f"several/clean/p{number}.png")
        for shot in range(3):
            picture(tmp_path / f"several/noisy/p{number}/{shot}.png")
    for split, count in (("train", 18), ("val", 2)):
        single = names(index(tmp_path / "one", split, layout="pairs"))
        several = index(tmp_path / "several", split, layout="pairs")
        assert len(single) == count and several.num_rows == 3 * count
        assert names(several) == sorted(f"{name}/{shot}" for name in single for shot in range(3))
    config = Config().replace({"data.root": str(tmp_path / "several"), "data.layout": "pairs", "model.name": "cbdnet"})
    train, val = (index(tmp_path / "several", split, layout="pairs") for split in ("train", "val"))
    assert "6 of its 60 pairs are held out" in str(splits.held_out_line(config, train))
    assert "6 of its 60 pairs are evaluated" in str(splits.evaluated_part_line(config, val))


def test_pairs_with_one_side_missing_or_empty(tmp_path: Path) -> None:
    picture(tmp_path / "clean/a.png")
    assert "looked for clean/ and noisy/" in refusal(tmp_path, "train", layout="pairs")
    (tmp_path / "noisy").mkdir()
    (tmp_path / "clean/a.png").unlink()
    assert "holds no *.png" in refusal(tmp_path, "train", layout="pairs")


def test_fingerprint_follows_the_data_not_the_place(city: Path, tmp_path: Path) -> None:
    first = fingerprint(index(city, "train"))
    assert len(first) == 16 and int(first, 16) >= 0
    shutil.copytree(city, tmp_path / "copy")
    assert fingerprint(index(tmp_path / "copy", "train")) == first
    table = index(city, "train")
    assert fingerprint(table.take([2, 0, 1])) == first
    seen = {first, fingerprint(table.slice(1)), fingerprint(index(city, "train", labels="ignore"))}
    write_png(
        tmp_path / "copy/gtFine/train/ulm/ulm_1_gtFine_labelIds.png",
        np.arange(48, dtype=np.uint8).reshape(6, 8),
    )
    seen.add(fingerprint(index(tmp_path / "copy", "train")))
    assert len(seen) == 4
    shutil.rmtree(city)
    with pytest.raises(DataError, match="index it again"):
        fingerprint(table)


def test_train_ids_are_at_hand() -> None:
    assert TRAIN_IDS.shape == (256,) and TRAIN_IDS.dtype == np.uint8 and TRAIN_IDS[26] == 13


def test_index_reads_headers_only(tmp_path: Path) -> None:
    """1500 frames with labels, 3000 files, in about a second; 5 s allowed for a busy machine.

    Decoding them would take a minute: each is a 2048x1024 frame.
    """
    write_png(tmp_path / "image.png", np.zeros((1024, 2048, 3), np.uint8))
    write_png(tmp_path / "label.png", np.zeros((1024, 2048), np.uint8))
    for kind, source, ending in (
        ("leftImg8bit", "image.png", "leftImg8bit"),
        ("gtFine", "label.png", "gtFine_labelIds"),
    ):
        folder = tmp_path / "city" / kind / "train/aachen"
        folder.mkdir(parents=True)
        for i in range(1500):
            (folder / f"aachen_{i:06}_{ending}.png").hardlink_to(tmp_path / source)
    start = time.process_time()
    table = index(tmp_path / "city", "train")
    seconds = time.process_time() - start
    print(f"{seconds:.2f} s")
    assert table.num_rows == 1500 and seconds < 5
