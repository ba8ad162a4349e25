"""Built-in scenes: same bytes every time, Cityscapes layout, all classes, no root overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import scenes
from pipelines.data.images import TRAIN_IDS, read_labels, read_rgb
from pipelines.scenes import writing
from pipelines.scenes.canvas import SKY, VEGETATION

SMALL = {"train": 3, "val": 2, "height": 64, "width": 128}


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of few small scenes; tests only read it."""
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set", **SMALL)


def test_a_scene_has_the_sizes_and_types_of_cityscapes() -> None:
    picture, ids = scenes.scene(3, 72, 150)
    assert picture.shape == (72, 150, 3) and picture.dtype == np.uint8
    assert ids.shape == (72, 150) and ids.dtype == np.uint8


def test_a_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, again, other = scenes.scene(5, 64, 128), scenes.scene(5, 64, 128), scenes.scene(6, 64, 128)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.5


def test_the_set_is_the_same_bytes_every_time(small: Path, tmp_path: Path) -> None:
    assert _digests(scenes.write_scenes(tmp_path / "again", **SMALL)) == _digests(small)


def test_another_seed_shares_no_scene(small: Path, tmp_path: Path) -> None:
    other = scenes.write_scenes(tmp_path / "other", **SMALL, seed=1)
    pngs = [{d for name, d in _digests(root).items() if "leftImg8bit" in name} for root in (small, other)]
    assert not pngs[0] & pngs[1]


def test_the_layout_is_that_of_cityscapes(small: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        pictures = sorted(small.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png"))
        labels = sorted(small.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png"))
        stems = [path.name.removesuffix("_leftImg8bit.png") for path in pictures]
        assert len(stems) == count
        assert stems == [path.name.removesuffix("_gtFine_labelIds.png") for path in labels]
        assert read_rgb(pictures[0]).shape == (64, 128, 3) and read_labels(labels[0]).shape == (64, 128)
    train, val = ({p.name for p in small.glob(f"leftImg8bit/{s}/*/*")} for s in ("train", "val"))
    assert len(train | val) >= 3


def test_validation_scenes_do_not_depend_on_the_number_of_training_scenes(small: Path, tmp_path: Path) -> None:
    more = scenes.write_scenes(tmp_path / "more", **{**SMALL, "train": 4})
    assert {k: v for k, v in _digests(more).items() if "/val/" in k} == {
        k: v for k, v in _digests(small).items() if "/val/" in k
    }


def test_every_class_is_in_several_scenes_of_both_splits(tmp_path: Path) -> None:
    """Of the set that is drawn by default, at half the size: 10 pixels, which are 40 of the whole."""
    root = scenes.write_scenes(tmp_path / "half", height=128, width=256)
    for split, count in (("train", 24), ("val", 6)):
        labels = [read_labels(path) for path in sorted(root.glob(f"gtFine/{split}/*/*.png"))]
        assert len(labels) == count
        shown = [sum(int((label == k).sum() >= 10) for label in labels) for k in range(19)]
        assert min(shown) >= 3, dict(enumerate(shown))


def test_only_known_label_ids_are_drawn() -> None:
    _, ids = scenes.scene(1, 96, 192)
    assert set(np.unique(TRAIN_IDS[ids])) <= {*range(19), 255}
    assert (TRAIN_IDS[ids] == 255).mean() < 0.02  # litter bins only


@pytest.mark.parametrize("seed", [0, 2, 5, 11])
def test_picture_and_labels_agree(seed: int) -> None:
    picture, ids = scenes.scene(seed, 128, 256)
    rows = np.broadcast_to(np.arange(128)[:, None], ids.shape)
    road, sky, green = ids == 7, ids == SKY, ids == VEGETATION
    assert rows[sky].max() < rows[road].min()
    colour = picture.astype(float)
    blueness = colour[..., 2] - colour[..., 0]
    assert blueness[sky].mean() > blueness[road].mean() + 3
    greenness = colour[..., 1] - colour[..., [0, 2]].mean(-1)
    assert greenness[green].mean() > greenness[road].mean() + 8


@pytest.mark.parametrize("seed", range(3))
def test_scenes_are_textured_enough_to_denoise(seed: int) -> None:
    """A 3x3 mean, the simplest denoiser, loses more on a clean scene than sigma-25 noise does after it."""
    picture, _ = scenes.scene(seed, 128, 256)
    x = picture.astype(float)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth = sum(padded[i : i + 128, j : j + 256] for i in range(3) for j in range(3)) / 9
    assert np.sqrt(((smooth - x) ** 2).mean()) > 25 / 3


def test_a_finished_set_is_left_alone(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*.png")}
    assert scenes.write_scenes(small, **SMALL) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*.png")} == before


def test_the_manifest_names_the_arguments(small: Path) -> None:
    assert json.loads((small / scenes.MANIFEST).read_text()) == {
        **SMALL,
        "seed": 0,
        "generator": scenes.VERSION,
    }


def test_an_interrupted_set_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seed: int, height: int, width: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "scene", stop)
        scenes.write_scenes(tmp_path, **SMALL)
    assert not (tmp_path / scenes.MANIFEST).exists()
    scenes.write_scenes(tmp_path, **SMALL)
    assert len(list(tmp_path.glob("leftImg8bit/*/*/*.png"))) == 5 and (tmp_path / scenes.MANIFEST).is_file()
    assert not (tmp_path / scenes.STARTED).exists()


def test_a_lost_picture_is_written_anew(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path / "set", **SMALL)
    before = _digests(root)
    next(root.glob("leftImg8bit/val/*/*.png")).unlink()
    assert _digests(scenes.write_scenes(root, **SMALL)) == before


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert scenes.write_scenes("~/set", train=1, val=1, height=64, width=128) == tmp_path / "set"
    assert (tmp_path / "set").is_dir() and not (tmp_path / "~").exists()


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    real = tmp_path / "leftImg8bit" / "train" / "aachen"
    real.mkdir(parents=True)
    (real / "aachen_000000_000019_leftImg8bit.png").write_bytes(b"a photograph")
    with pytest.raises(ValueError, match="no built-in scenes") as caught:
        scenes.write_scenes(tmp_path, **SMALL)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["leftImg8bit"]


def test_scenes_of_other_arguments_are_never_overwritten(small: Path) -> None:
    before = _digests(small)
    with pytest.raises(ValueError, match="train=3"):
        scenes.write_scenes(small, **{**SMALL, "train": 5})
    assert _digests(small) == before


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / scenes.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="no manifest"):
        scenes.write_scenes(tmp_path, **SMALL)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"seed": -1}, {"height": 10}, {"width": 20}])
def test_bad_numbers_are_named_before_anything_is_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        scenes.write_scenes(tmp_path / "set", **{**SMALL, **wrong})
    assert not (tmp_path / "set").exists()
