"""The photographs that figures and report show, and the short names of the rows they compare."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from d2sm.inference import restore
from pipelines.comparison.photographs import ComparedPhotograph, compared_photographs
from pipelines.comparison.rows import Row, RunsError, short_names
from pipelines.config import Config
from pipelines.data import splits
from pipelines.data.images import write_png
from pipelines.data.items import read
from pipelines.inference import samples
from pipelines.recipes import recipe
from pipelines.runs import checkpoint
from tests.helpers.finished_runs import write_row
from tests.helpers.segmenters import Brightness


@pytest.fixture(scope="module")
def rows(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_row(scenes_root, folder, "ffdnet_l1_cpu"),
        write_row(scenes_root, folder, "ffdnet_d2sm_cpu", train__seed=1),
    ]


@pytest.fixture(scope="module")
def found(rows: list[Row]) -> list[ComparedPhotograph]:
    return compared_photographs(rows, count=5)


def test_they_are_what_the_evaluation_measured(rows: list[Row], found: list[ComparedPhotograph]) -> None:
    config = rows[0].config
    items = splits.evaluation_images(config).to_pylist()
    assert [photograph.name for photograph in found] == [item["name"] for item in items]  # there are two in all
    for photograph, item in zip(found, items, strict=True):
        assert list(photograph.images) == list(photograph.classes) == ["noisy", "L1", "D2SM", "clean"]
        assert photograph.level == "35"
        clean, (_, sigma, noisy) = samples.tensor(read(item).clean), samples.load(config, item).noisy[1]
        restored = restore(checkpoint.load_model(rows[1].runs[0].checkpoint)[0], noisy, sigma).clamp(0, 1)
        for name, image in (("noisy", noisy.clamp(0, 1)), ("D2SM", restored), ("clean", clean)):
            expected = (image[0].permute(1, 2, 0).numpy() * 255).round()
            assert np.array_equal(photograph.images[name], expected)
            assert np.array_equal(photograph.classes[name], Brightness()(image).argmax(1)[0].numpy())
        assert not np.array_equal(photograph.images["L1"], photograph.images["D2SM"])


def test_the_segmenter_can_be_left_out(rows: list[Row]) -> None:
    (photograph,) = compared_photographs(rows, count=1, segmented=False)
    assert photograph.classes == {} and photograph.images["clean"].shape == (96, 192, 3)


def test_each_network_is_told_the_noise_of_pairs_that_its_own_row_has(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("clean", "noisy"):
        write_png(tmp_path / "pairs" / kind / "a.png", rng.integers(0, 256, (48, 64, 3), np.uint8))
    both = [
        write_row(
            tmp_path / "pairs", tmp_path, "ffdnet_l1_cpu",
            data__layout="pairs", data__val_split="", noise__draw="list", noise__sigma=[sigma],
        )
        for sigma in (25.0, 50.0)
    ]  # fmt: skip
    (photograph,) = compared_photographs(both, count=1, segmented=False)
    (item,) = splits.evaluation_images(both[0].config).to_pylist()
    _, _, noisy = samples.load(both[0].config, item).shown
    for row, name in zip(both, list(photograph.images)[1:3], strict=True):
        network = checkpoint.load_model(row.runs[0].checkpoint)[0]
        restored = restore(network, noisy, row.config.noise.sigma[0])
        assert np.array_equal(photograph.images[name], samples.pixels(restored)), name
    assert photograph.level == "pair" and len(photograph.images) == 4


def test_photographs_of_which_none_can_be_read_are_one_line(scenes_root: Path, tmp_path: Path) -> None:
    """Their pixels were damaged, which no look at a header shows; data.bad_images=skip leaves each of them out."""
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    rows = [write_row(root, tmp_path, "ffdnet_l1_cpu", data__bad_images="skip")]
    first, second = sorted(root.glob("leftImg8bit/val/*/*.png"))
    for path, left in ((first, 1), (second, 0)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
        if left:
            assert len(compared_photographs(rows, count=2, segmented=False)) == left
    with pytest.raises(RunsError, match=f"^data.root={root}: none of the 2 photographs to be shown can be read"):
        compared_photographs(rows, count=2, segmented=False)


def test_no_rows_are_refused() -> None:
    with pytest.raises(RunsError, match="no runs"):
        compared_photographs([], count=1)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ([("ffdnet_l1_cpu", {})], ["L1"]),
        (
            [(f"ffdnet_{name}_cpu", {}) for name in ("l1", "d2sm", "d2sm_internal", "perceptual")],
            ["L1", "D2SM", "D2SM internal", "perceptual"],
        ),
        ([("ffdnet_d2sm", {}), ("sadnet_d2sm", {})], ["ffdnet D2SM", "sadnet D2SM"]),
        ([("ffdnet_l1_cpu", {}), ("ffdnet_l1", {})], ["L1 cpu", "L1"]),
        (
            [("ffdnet_d2sm_cpu", {"loss.queue_size": q, "train.lr": 0.1}) for q in (64, 512)],
            ["queue_size=64", "queue_size=512"],  # 512 is the recipe's own
        ),
        (
            [("ffdnet_l1_cpu", {}), ("ffdnet_d2sm_cpu", {}), ("ffdnet_d2sm_cpu", {"loss.weight": 2.5})],
            ["L1", "D2SM weight=10", "D2SM weight=2.5"],
        ),
        ([("", {}), ("", {"loss.patch_size": 16, "loss.queue_size": 2048})], None),
    ],
)
def test_short_names_tell_settings_apart(
    settings: list[tuple[str, dict[str, object]]], expected: list[str] | None
) -> None:
    configs = [(recipe(name) if name else Config()).replace(changes) for name, changes in settings]
    assert short_names(configs) == (expected or ["queue_size=1024 patch_size=none", "queue_size=2048 patch_size=16"])
