"""Every verb reads the same pixels of a photograph, whatever stores it: image files, pairs, a folder, or shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2sm.noise import add_noise, seed_of
from pipelines.comparison.photographs import compared_photographs
from pipelines.comparison.report.pictures import pictures as report_pictures
from pipelines.config import Config
from pipelines.data import items, splits, stream
from pipelines.data.images import TRAIN_IDS, write_png
from pipelines.evaluate import evaluate
from pipelines.inference import pictures
from pipelines.prepare import prepare
from pipelines.tracking.segmenter import evaluation_segmenter
from tests.helpers.finished_runs import write_row

SIDE, COUNT = 48, 3
LAYOUTS = ("cityscapes", "folder", "pairs")
STORES = ("files", "prepared")
CHANGES: dict[str, dict[str, Any]] = {
    "cityscapes": {},
    "folder": {"data.layout": "folder"},
    "pairs": {"data.layout": "pairs", "noise.sigma": [25], "noise.draw": "list"},
}
Pixels = dict[str, np.ndarray]
Photographs = dict[str, list[Pixels]]  # by layout: clean, label and noisy of each photograph


def written(root: Path) -> Photographs:
    """The photographs in all layouts below a folder; what a decoder of others reads of them."""
    rng = np.random.default_rng(0)
    found: Photographs = {layout: [] for layout in LAYOUTS}
    for number in range(COUNT):
        clean, noisy = (rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2))
        ids = rng.integers(0, 34, (SIDE, SIDE), dtype=np.uint8)
        for split in ("train", "val"):
            write_png(root / f"cityscapes/leftImg8bit/{split}/ulm/{number}_leftImg8bit.png", clean)
            write_png(root / f"cityscapes/gtFine/{split}/ulm/{number}_gtFine_labelIds.png", ids)
            write_png(root / f"pairs/{split}/clean/{number}.png", clean)
            write_png(root / f"pairs/{split}/noisy/{number}.png", noisy)
        for split in ("train", "val"):
            photograph = root / f"folder/{split}/{number}.jpg"
            photograph.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(clean).save(photograph, quality=95)
        found["cityscapes"].append({"clean": clean, "label": TRAIN_IDS[ids]})
        found["pairs"].append({"clean": clean, "noisy": noisy})
        found["folder"].append({"clean": np.asarray(Image.open(photograph))})
    return found


@pytest.fixture(scope="module")
def stored(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Photographs]:
    """A folder with FILES/LAYOUT and PREPARED/LAYOUT, and the pixels of all photographs."""
    root = tmp_path_factory.mktemp("stored")
    found = written(root / "files")
    for layout in LAYOUTS:
        prepare(root / "files" / layout, root / "prepared" / layout, layout=layout, shard_mb=0.02, quiet=True)
    return root, found


Case = tuple[Config, list[Pixels]]


@pytest.fixture(params=[(layout, store) for layout in LAYOUTS for store in STORES], ids="-".join)
def case(request: pytest.FixtureRequest, stored: tuple[Path, Photographs]) -> Case:
    root, photographs = stored
    layout, store = request.param
    config = Config().replace(
        {
            "data.root": str(root / store / layout), "data.crop_size": SIDE, "data.flip": False,
            "data.shuffle_images": COUNT, "train.batch_size": COUNT, "loss.weight": 0, "evaluate.actors": 0,
            "evaluate.sigmas": [25], "evaluate.segmenter": "tests.helpers.segmenters:by_brightness",
            "evaluate.pictures": COUNT, "evaluate.tile": None, "model.width": 4, "model.depth": 3, **CHANGES[layout],
        }
    )  # fmt: skip
    return config, photographs[layout]


def names(config: Config) -> list[str]:
    return [str(name) for name in splits.evaluation_images(config)["name"].to_pylist()]


def noisy_of(photograph: Pixels, name: str) -> np.ndarray:
    """What evaluation restores, as uint8: the photographed partner, or the clean image with noise of sigma 25."""
    if "noisy" in photograph:
        return photograph["noisy"]
    clean = torch.from_numpy(photograph["clean"].copy()).permute(2, 0, 1)[None].float() / 255
    noisy = add_noise(clean, sigma=torch.tensor([25.0]), seeds=[seed_of(name)])[0].clamp(0, 1)
    return (noisy * 255).round().byte().permute(1, 2, 0).numpy()


def test_read(case: Case) -> None:
    config, photographs = case
    found = [items.read(item) for item in splits.evaluation_images(config).to_pylist()]
    for photograph, wanted in zip(found, photographs, strict=True):
        for kind in ("clean", "label", "noisy"):
            image = getattr(photograph, kind)
            assert (image is None) == (kind not in wanted)
            if image is not None:
                np.testing.assert_array_equal(image, wanted[kind])
                assert image.flags.writeable  # torch.from_numpy warns otherwise


def test_labels_can_be_left_out(case: Case) -> None:
    config, _ = case
    assert items.read(splits.evaluation_images(config).to_pylist()[0], labels=False).label is None


def test_ingest(case: Case) -> None:
    """A crop as large as the photograph is the photograph."""
    config, photographs = case
    if config.data.layout == "cityscapes":
        config = config.replace({"loss.cross_entropy": 1, "loss.segmenter": "tests.helpers.segmenters:by_brightness"})
    table = splits.training_images(config)
    (batch,) = stream.IngestTask(config, table)({"first": np.array([0]), "last": np.array([1])})
    order = stream._epoch_table(config, COUNT, 0)["item"].to_pylist()
    assert sorted(order) == list(range(COUNT))
    for kind in ("clean", "label", "noisy"):
        wanted = [photographs[number][kind] for number in order if kind in photographs[number]]
        assert (kind in batch) == bool(wanted)
        if wanted:
            np.testing.assert_array_equal(batch[kind][0], np.stack(wanted))


def test_evaluation(case: Case, tmp_path: Path) -> None:
    """PSNR of the noisy images, and for labels the MIoU of the clean ones."""
    config, photographs = case
    model = write_row(Path(config.data.root), tmp_path, "ffdnet_l1_cpu", **flat(config)).runs[0].checkpoint
    results = evaluate(model, config, quiet=True)
    (score,) = results.noisy.values()
    errors = [
        (noisy_of(photograph, name).astype(float) - photograph["clean"]) / 255
        for photograph, name in zip(photographs, names(config), strict=True)
    ]
    # Noise added here is rounded to 8 bits, there it is not.
    assert score.psnr == pytest.approx(np.mean([-10 * np.log10(np.mean(e**2)) for e in errors]), abs=0.01)
    assert (results.clean.miou is None) == (config.data.layout != "cityscapes")
    if results.clean.miou is not None:
        counts = np.zeros((19, 19), int)
        for photograph in photographs:
            steps = np.linspace(0, 1, 19, dtype=np.float32)
            grey = torch.from_numpy(photograph["clean"].copy()).float().div(255).mean(-1).numpy()
            seen = np.abs(grey[..., None] - steps).argmin(-1)
            known = photograph["label"] != 255
            np.add.at(counts, (photograph["label"][known], seen[known]), 1)
        hit = np.diag(counts)
        union = counts.sum(0) + counts.sum(1) - hit
        assert results.clean.miou == pytest.approx(np.mean((hit / union)[counts.sum(1) > 0]), abs=1e-3)


def flat(config: Config) -> dict[str, Any]:
    """The keys of a case that a finished run must share, as `write_row` takes them."""
    shared = ("data.", "noise.", "evaluate.")
    return {key.replace(".", "__"): value for key, value in config.flat().items() if key.startswith(shared)}


def test_pictures(case: Case, tmp_path: Path) -> None:
    config, photographs = case
    model = write_row(Path(config.data.root), tmp_path, "ffdnet_l1_cpu", **flat(config)).runs[0].checkpoint
    drawn = pictures.draw(model, config, tmp_path / "pictures", evaluation_segmenter(config))
    for path, photograph, name in zip(drawn, photographs, names(config), strict=True):
        picture = np.asarray(Image.open(path))[pictures.LABELS :]
        np.testing.assert_array_equal(picture[:SIDE, :SIDE], noisy_of(photograph, name))
        np.testing.assert_array_equal(picture[:SIDE, -SIDE:], photograph["clean"])


def test_figures_and_report(case: Case, tmp_path: Path) -> None:
    config, photographs = case
    found = compared_photographs(
        [write_row(Path(config.data.root), tmp_path, "ffdnet_l1_cpu", **flat(config))], count=COUNT
    )
    for compared, photograph, name in zip(found, photographs, names(config), strict=True):
        assert compared.name == name
        np.testing.assert_array_equal(compared.images["clean"], photograph["clean"])
        np.testing.assert_array_equal(compared.images["noisy"], noisy_of(photograph, name))
    shown = report_pictures(found, limit=10**7)
    assert [(picture.name, picture.width, picture.height) for picture in shown] == [
        (name, SIDE, SIDE) for name in names(config)
    ]
    assert all([version.name for version in picture.versions] == ["noisy", "L1", "clean"] for picture in shown)
