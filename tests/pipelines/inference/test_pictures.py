"""Pictures of an evaluation: which photographs, in which order, with which colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d2sm.metrics import COLOURS
from pipelines.data.images import read_rgb, write_png
from pipelines.data.splits import spread
from pipelines.inference.pictures import draw, grid, labelled
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.segmenters import Brightness


@pytest.mark.parametrize(
    "total, count, expected",
    [(10, 0, []), (10, 1, [0]), (10, 2, [0, 9]), (10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (1, 2, [0])],
)
def test_spread_takes_first_last_and_evenly_between(total: int, count: int, expected: list[int]) -> None:
    assert spread(total, count) == expected


def test_images_side_by_side_and_their_segmentation_below() -> None:
    images = [torch.full((1, 3, 4, 5), value) for value in (-0.5, 0.5, 1.5)]  # clamped to black, grey, white
    plain, segmented = grid(images, None), grid(images, Brightness())
    assert plain.shape == (4, 3 * 5 + 2 * 6, 3) and segmented.shape == (4 + 6 + 4, 27, 3)
    assert [plain[0, column].tolist() for column in (0, 5, 11, 16, 22)] == [
        [0] * 3, [255] * 3, [128] * 3, [255] * 3, [255] * 3
    ]  # fmt: skip
    np.testing.assert_array_equal(segmented[:4], plain)
    assert (segmented[4:10] == 255).all()
    assert [segmented[10, column].tolist() for column in (0, 11, 22)] == COLOURS[[0, 9, 18]].tolist()


def test_a_label_stands_above_each_column() -> None:
    picture = np.full((5, 3 * 100 + 2 * 6, 3), 7, np.uint8)
    found = labelled(picture, ["noisy, sigma 35, 17.20 dB", "restored by FFDNet, 27.35 dB", "clean"])
    strip = found[: -len(picture)]
    np.testing.assert_array_equal(found[-len(picture) :], picture)
    written = [np.flatnonzero((strip[:, left : left + 106] < 128).any((0, 2))) for left in (0, 106, 212)]
    assert all(len(columns) > 10 for columns in written)
    assert all(columns.max() < 104 for columns in written)  # none runs into the next


def test_the_pictures_of_a_run_are_labelled(scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("pipelines.inference.pictures.labelled", lambda picture, labels: seen.append(labels) or picture)
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25], evaluate__pictures=1)
    (path,) = draw(bundle_of(tmp_path / "step-00000000", config), config, tmp_path / "pictures", None)
    ((noisy, restored, clean),) = seen
    assert noisy.startswith("noisy, sigma 25, 2") and restored.startswith("restored by FFDNet, ") and clean == "clean"
    assert noisy.endswith(" dB") and read_rgb(path).shape == (96, 3 * 192 + 2 * 6, 3)


def test_deep_folders_and_equal_names_get_pictures_of_their_own(tmp_path: Path) -> None:
    deep = "/".join(["a-quite-long-name-of-an-album-with-photographs-of-one-summer-by-the-lake"] * 4)
    photographs = ("a/b", "a-b", f"{deep}/one", f"{deep}/two")
    for name in photographs:
        write_png(tmp_path / "photos" / "val" / f"{name}.png", np.zeros((40, 40, 3), np.uint8))
    config = tiny_config(
        tmp_path / "photos", tmp_path, data__layout="folder", evaluate__sigmas=[25], evaluate__pictures=4
    )
    drawn = draw(bundle_of(tmp_path / "step-00000000", config), config, tmp_path / "pictures", None)
    assert sorted((tmp_path / "pictures").iterdir()) == sorted(drawn) and len(set(drawn)) == len(drawn) == 4
    plain = [path.name for path in drawn if len(path.name) < 100]
    assert "a-b_sigma25.png" in plain and all(name.startswith("a-b") for name in plain) and len(plain) == 2
    assert all(path.name.endswith("_sigma25.png") and len(path.name) <= 255 for path in drawn)
