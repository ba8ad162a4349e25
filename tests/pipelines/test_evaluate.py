"""The numbers of an evaluation: those of a plain loop, whoever takes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from d2sm import metrics
from d2sm.inference import restore
from pipelines import experiment
from pipelines.config import ConfigError
from pipelines.data.images import ImageError, read_labels, read_rgb, write_png
from pipelines.data.index import DataError, index
from pipelines.evaluate import SMALLEST, check, evaluate
from pipelines.experiment import evaluate_run
from pipelines.networks.segmenters import SegmenterError
from pipelines.runs import checkpoint
from pipelines.runs.results import CONVENTION, CONVENTION_OF_PAIRS, EvaluationError, Results, higher_is_better
from pipelines.runtime.resources import ResourceError
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.segmenters import segmenter

SEGMENTER = "tests.helpers.segmenters:segmenter"


@pytest.fixture(scope="module")
def bundle(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("evaluate")
    config = tiny_config(scenes_root, storage, evaluate__segmenter=SEGMENTER, evaluate__sigmas=[25, 12.5])
    return bundle_of(storage / "step-00000000", config)


@pytest.fixture(scope="module")
def results(ray_session: None, bundle: Path) -> Results:
    return evaluate(bundle, trust=True, quiet=True)


def by_hand(bundle: Path, root: Path, sigma: float) -> dict[str, float]:
    """Restored PSNR, SSIM and MIoU of one level, with numpy and scikit-image and no code of the pipeline's metrics."""
    from d2sm.noise import seed_of

    model, segment = checkpoint.load_model(bundle)[0], segmenter()
    psnr, ssim, counts = [], [], np.zeros((19, 19), int)
    for row in index(root, "val").to_pylist():
        clean = read_rgb(row["image"]).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        noise = torch.empty(clean.shape).normal_(generator=torch.Generator().manual_seed(seed_of(row["name"])))
        noisy = torch.from_numpy(clean)[None] + noise[None] * (torch.tensor([sigma]) / 255)
        restored = restore(model, noisy, sigma).clamp(0, 1)
        array = restored[0].numpy()
        psnr.append(peak_signal_noise_ratio(clean, array, data_range=1))
        ssim.append(
            structural_similarity(
                clean.transpose(1, 2, 0), array.transpose(1, 2, 0), channel_axis=2, data_range=1, sigma=1.5,
                gaussian_weights=True, use_sample_covariance=False,
            )
        )  # fmt: skip
        label = read_labels(row["label"])
        with torch.no_grad():
            said = segment(restored).argmax(1)[0].numpy()
        np.add.at(counts, (label[label != 255], said[label != 255]), 1)
    hit = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hit
    return {"psnr": np.mean(psnr), "ssim": np.mean(ssim), "miou": np.mean((hit / np.maximum(union, 1))[union > 0])}


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [12.5, 25])
def test_the_numbers_are_those_of_a_plain_loop(results: Results, bundle: Path, scenes_root: Path, sigma: float) -> None:
    wanted = by_hand(bundle, scenes_root, sigma)
    found = results.restored[f"{sigma:g}"]
    assert found.psnr == pytest.approx(wanted["psnr"], abs=1e-4)  # dB; float32 sums against scikit-image's
    assert found.ssim == pytest.approx(wanted["ssim"], abs=1e-5)
    assert found.miou == pytest.approx(wanted["miou"], abs=1e-12)


@pytest.mark.slow
def test_what_an_evaluation_says(results: Results) -> None:
    assert list(results.restored) == list(results.noisy) == ["12.5", "25"]
    assert (results.images, results.split, results.segmenter) == (2, "val", SEGMENTER)
    # Two images of 55,296 numbers: clamping only lowers the error, so this lies just above 20 log10(255 / 25).
    assert 20.17 < results.noisy["25"].psnr < 21.5
    assert results.noisy["12.5"].psnr > results.noisy["25"].psnr
    assert results.clean.psnr is None
    assert 0 <= results.clean.miou <= 1
    measured = {f"{name}.sigma{level}" for name in ("psnr", "ssim", "miou") for level in ("12.5", "25")}
    assert set(results.flat()) == measured | {f"noisy.{name}" for name in measured} | {"clean.miou"}
    table = results.table("ours")
    assert f"{results.restored['25'].psnr:.2f}" in table
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == ["noisy", "ours", "clean (ceiling)"]


@pytest.mark.slow
@pytest.mark.parametrize("actors", [0, pytest.param(2, marks=pytest.mark.long)])
def test_any_number_of_actors_says_the_same_bit_for_bit(
    actors: int, results: Results, bundle: Path, scenes_root: Path
) -> None:
    config = checkpoint.load_model(bundle)[1].replace({"evaluate.actors": actors})
    assert evaluate(bundle, config, quiet=True) == results


def test_a_folder_has_no_labels_so_no_miou(bundle: Path, scenes_root: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "val"
    photos.mkdir(parents=True)
    for path in scenes_root.glob("leftImg8bit/val/*/*.png"):
        shutil.copy(path, photos)
    config = checkpoint.load_model(bundle)[1].replace(
        {"data.root": str(photos.parent), "data.layout": "folder", "evaluate.tile": 32, "evaluate.sigmas": [25],
         "evaluate.actors": 0}
    )  # fmt: skip
    done = evaluate_run(bundle, config, out=tmp_path / "results.json", quiet=True)
    results, path = done.results, done.path
    assert results.segmenter == ""
    assert results.restored["25"].miou is None
    assert results.restored["25"].psnr > 0
    assert "clean.miou" not in results.flat()
    saved = json.loads(path.read_text())
    assert saved["restored"]["25"]["psnr"] == results.restored["25"].psnr
    assert saved["restored"]["25"]["miou"] is None
    assert (saved["convention"], saved["images"], saved["data"]) == (CONVENTION, 2, results.data)


@pytest.mark.slow
def test_an_image_damaged_within_is_one_line(
    ray_session: None, bundle: Path, tmp_path: Path, scenes_root: Path
) -> None:
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    bad = sorted(root.glob("leftImg8bit/val/*/*.png"))[1]
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bad.write_bytes(bytes(data))
    config = checkpoint.load_model(bundle)[1].replace({"data.root": str(root)})
    with pytest.raises((ImageError, EvaluationError), match=str(bad)) as error:
        evaluate(bundle, config, quiet=True)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value) and "data.bad_images=skip" in str(error.value)
    results = evaluate(bundle, config.replace({"data.bad_images": "skip"}), quiet=True)  # in an actor, too
    assert results.images == 1 and "damaged" in next(iter(results.skipped.values()))


def refused(bundle: Path, kind: type[Exception], match: str, **changes: Any) -> None:
    config = checkpoint.load_model(bundle)[1]
    with pytest.raises(kind, match=match) as error:
        evaluate(bundle, config.replace({key.replace("__", "."): value for key, value in changes.items()}), quiet=True)
    assert "\n" not in str(error.value)


def test_bad_requests_are_one_line(bundle: Path, tmp_path: Path) -> None:
    refused(bundle, DataError, "nowhere: does not exist", data__root=str(tmp_path / "nowhere"))
    refused(bundle, DataError, "split 'vall'.*did you mean val", data__val_split="vall")
    refused(bundle, SegmenterError, "espnet-cityscape", evaluate__segmenter="espnet-cityscape")
    refused(bundle, SegmenterError, "no such file", evaluate__segmenter="espnet-camvid",
            evaluate__segmenter_weights=str(tmp_path / "none.pth"))  # fmt: skip


def test_an_image_without_its_label(bundle: Path, tmp_path: Path, scenes_root: Path) -> None:
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    next(iter(sorted(root.glob("gtFine/val/*/*.png")))).unlink()
    refused(bundle, DataError, "scenes/.*without a label in gtFine", data__root=str(root))


def test_a_label_of_another_size(bundle: Path, tmp_path: Path, scenes_root: Path) -> None:
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    label = sorted(root.glob("gtFine/val/*/*.png"))[0]
    write_png(label, np.zeros((96, 190), np.uint8))
    refused(bundle, DataError, f"{label}: is 96x190", data__root=str(root))


@pytest.mark.slow
def test_more_actors_than_cpus(ray_session: None, bundle: Path) -> None:
    refused(bundle, ResourceError, "evaluate.actors=500.*lower it", evaluate__actors=500)


def spoil(root: Path, what: str) -> None:
    """Make a copy of the scenes one that cannot be evaluated."""
    image = sorted(root.glob("leftImg8bit/val/*/*.png"))[0]
    label = sorted(root.glob("gtFine/val/*/*.png"))[0]
    if what == "split":
        shutil.rmtree(root / "leftImg8bit/val")
    if what == "label":
        label.unlink()
    if what == "size":
        write_png(image, np.zeros((SMALLEST - 1, 100, 3), np.uint8))
        write_png(label, np.zeros((SMALLEST - 1, 100), np.uint8))


WEIGHTS = {"evaluate__segmenter": "espnet-camvid", "evaluate__segmenter_weights": "none.pth"}


@pytest.mark.parametrize(
    "what, changes, words",
    [
        ("weights", WEIGHTS, ("evaluate.segmenter=espnet-camvid", "evaluate.segmenter_weights=none.pth", "=null")),
        ("segmenter", {"evaluate__segmenter": "espnet-street"}, ("evaluate.segmenter=espnet-street", "espnet-scenes")),
        ("split", {}, ("val", "train")),
        ("label", {}, ("without a label", "evaluate.segmenter=null")),
        ("size", {}, ("data.val_split=val", f"100x{SMALLEST - 1} pixels", f"{SMALLEST}x{SMALLEST}", "remove")),
        ("actors", {"evaluate__actors": 500}, ("evaluate.actors=500", "lower it")),
        ("GPUs", {"evaluate__use_gpu": True}, ("evaluate.use_gpu=true", "evaluate.use_gpu=false")),
        ("GPU", {"evaluate__use_gpu": True, "evaluate__actors": 0}, ("evaluate.use_gpu=true", "=false")),
    ],
)
def test_what_an_evaluation_lacks_is_said_before_the_training(
    ray_session: None, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, changes: dict[str, Any], words: tuple[str, ...],
) -> None:  # fmt: skip
    """One line with key, value and remedy; no step is trained and no run's folder made."""
    if what in ("GPU", "GPUs") and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    monkeypatch.setattr("pipelines.training.launch.run", lambda *_: pytest.fail("training started"))
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    spoil(root, what)
    config = tiny_config(root, tmp_path / "runs", **{"evaluate__segmenter": SEGMENTER, **changes})
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        experiment.run(config, quiet=True)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_folder_without_splits_is_evaluated_in_part(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says which part, and how to take all."""
    for name in "abc":
        write_png(tmp_path / f"photos/{name}.png", np.full((16, 40, 3), 90, np.uint8))
    config = checkpoint.load_model(bundle)[1].replace(
        {"data.root": str(tmp_path / "photos"), "data.layout": "folder", "evaluate.actors": 0}
    )
    assert evaluate(bundle, config, quiet=True).images == 1
    line = capsys.readouterr().err
    assert f"data.root={tmp_path}/photos: " in line and "1 of its 3 photographs" in line and "data.val_split= " in line
    assert evaluate(bundle, config.replace({"data.val_split": ""}), quiet=True).images == 3
    assert "photographs" not in capsys.readouterr().err


def test_the_smallest_image_can_be_measured(bundle: Path, scenes_root: Path, tmp_path: Path) -> None:
    """One pixel less is refused (above), since SSIM's window no longer fits."""
    for split in ("train", "val"):
        write_png(
            tmp_path / f"photos/{split}/a.png", np.random.default_rng(0).integers(0, 256, (SMALLEST, 40, 3), np.uint8)
        )
    config = checkpoint.load_model(bundle)[1].replace(
        {"data.root": str(tmp_path / "photos"), "data.layout": "folder", "evaluate.actors": 0}
    )
    assert evaluate(bundle, config, quiet=True).restored["25"].ssim is not None
    clean = torch.rand(3, SMALLEST - 1, 40)
    with pytest.raises(ValueError, match=str(SMALLEST)):
        metrics.Similarity(clean)(clean)


def city(root: Path, *, labels: np.ndarray | None = None, images: int = 3) -> Path:
    """Evaluation images of 24x32 pixels in the Cityscapes layout; all have these labels, or none."""
    rng = np.random.default_rng(0)
    for number in range(images):
        name = f"val/ulm/{number}"
        write_png(root / f"leftImg8bit/{name}_leftImg8bit.png", rng.integers(0, 256, (24, 32, 3), np.uint8))
        if labels is not None:
            write_png(root / f"gtFine/{name}_gtFine_labelIds.png", labels)
    return root


def measured(bundle: Path, root: Path, **changes: Any) -> Results:
    """What this process measures of the images below `root`."""
    plain = {"data.root": str(root), "evaluate.actors": 0, "evaluate.sigmas": [25]}
    config = checkpoint.load_model(bundle)[1]
    return evaluate(
        bundle, config.replace(plain | {key.replace("__", "."): value for key, value in changes.items()}), quiet=True
    )


STREET = np.repeat(np.array([[23], [26], [7], [0]], np.uint8), 6, axis=0).repeat(32, axis=1)  # sky, car, road, void


def test_the_rows_of_single_images(bundle: Path, tmp_path: Path) -> None:
    """Their means are the numbers of the whole for PSNR and SSIM; MIoU is over the classes of each image."""
    results = measured(bundle, city(tmp_path, labels=STREET), evaluate__sigmas=[25, 50])
    assert [row.name for row in results.rows] == ["ulm/0", "ulm/1", "ulm/2"]
    for level in ("25", "50"):
        for kind in ("noisy", "restored"):
            scores = [getattr(row, kind)[level] for row in results.rows]
            assert getattr(results, kind)[level].psnr == pytest.approx(np.mean([score.psnr for score in scores]))
            assert getattr(results, kind)[level].ssim == pytest.approx(np.mean([score.ssim for score in scores]))
            assert all(0 <= score.miou <= 1 for score in scores)
    assert len({row.restored["25"].psnr for row in results.rows}) == 3
    assert results.rows[0].clean.psnr is None and results.rows[0].clean.miou is not None


@pytest.mark.parametrize("labels", [np.zeros((24, 32), np.uint8), np.full((24, 32), 255, np.uint8)])
def test_labels_that_are_void_everywhere_give_no_miou(bundle: Path, tmp_path: Path, labels: np.ndarray) -> None:
    results = measured(bundle, city(tmp_path, labels=labels))
    assert results.clean.miou is results.restored["25"].miou is None
    assert results.restored["25"].iou == {} and results.segmenter == SEGMENTER
    assert "MIoU has no value: all pixels of the labels are void" in results.notes()
    judged = measured(bundle, city(tmp_path, labels=labels), evaluate__segmenters=[SEGMENTER])
    (judge,) = judged.judges
    assert judged.rows[0].clean.judges[judge] is judged.restored["25"].judges[judge].miou is None
    judged.save(tmp_path / "judged.json")  # JSON has no nan
    assert Results.load(tmp_path / "judged.json") == judged


def test_train_ids_are_refused_before_anything_is_measured(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluate.measurements", lambda *_: pytest.fail("measured"))
    root = city(tmp_path, labels=np.where(STREET == 0, 255, STREET % 19).astype(np.uint8))
    first = root / "gtFine/val/ulm/0_gtFine_labelIds.png"
    for bad_images in ("stop", "skip"):
        with pytest.raises(DataError, match=f"{first}: .*train ids.*evaluate.segmenter=null"):
            measured(bundle, root, data__bad_images=bad_images)


def test_labels_without_any_id_above_18_are_pointed_out(bundle: Path, tmp_path: Path) -> None:
    """Train ids without void look like this; labels of nothing but roads too, so they are not refused."""
    config = checkpoint.load_model(bundle)[1]
    few = city(tmp_path / "few", labels=np.full((24, 32), 13, np.uint8))
    (note,) = check(config.replace({"data.root": str(few)})).notes
    assert "no id above 18" in note and "train ids" in note
    assert check(config.replace({"data.root": str(city(tmp_path / "street", labels=STREET))})).notes == ()


def test_noise_of_level_0_leaves_no_infinity(bundle: Path, tmp_path: Path) -> None:
    results = measured(bundle, city(tmp_path), evaluate__sigmas=[0])
    assert results.noisy["0"].psnr is None and results.noisy["0"].ssim == pytest.approx(1)
    assert all(np.isfinite(value) for value in results.flat().values())
    results.save(tmp_path / "results.json")
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_unusable_images_stop_an_evaluation_or_are_skipped_and_named(bundle: Path, tmp_path: Path) -> None:
    """One cannot be opened, one is too small for SSIM, one is damaged inside, which shows when it is decoded."""
    root = city(tmp_path, images=6)
    images = sorted(root.glob("leftImg8bit/val/ulm/*.png"))
    expected = measured(bundle, city(tmp_path / "good", images=6))
    images[1].write_bytes(images[1].read_bytes()[:40])
    with pytest.raises(DataError, match=f"{images[1]}.*truncated.*data.bad_images=skip leaves"):
        measured(bundle, root)
    write_png(images[1], np.zeros((SMALLEST - 1, 40, 3), np.uint8))
    with pytest.raises(
        DataError, match=rf"data.val_split=val: ulm/1 has 40x{SMALLEST - 1} pixels.*data.bad_images=skip"
    ):
        measured(bundle, root)
    results = measured(bundle, root, data__bad_images="skip")
    assert list(results.skipped) == ["ulm/1"] and results.images == 5
    shutil.copy(tmp_path / "good" / images[1].relative_to(root), images[1])
    data = bytearray(images[4].read_bytes())
    data[len(data) // 2] ^= 0xFF
    images[4].write_bytes(bytes(data))
    with pytest.raises(EvaluationError, match=f"{images[4]}.*damaged.*data.bad_images=skip leaves"):
        measured(bundle, root)
    images[0].write_bytes(images[0].read_bytes()[:40])
    write_png(images[2], np.zeros((SMALLEST - 1, 40, 3), np.uint8))
    results = measured(bundle, root, data__bad_images="skip")
    assert results.images == 3 and sorted(results.skipped) == ["ulm/0", "ulm/2", "ulm/4"]
    assert "truncated" in results.skipped["ulm/0"] and "damaged" in results.skipped["ulm/4"]
    assert results.rows == tuple(row for row in expected.rows if row.name not in results.skipped)
    assert "3 skipped (data.bad_images=skip): ulm/0, ulm/2, ulm/4" in results.notes()
    for image in images:
        image.unlink()
    left = city(tmp_path / "left", images=6)
    (left / "leftImg8bit/val/ulm/5_leftImg8bit.png").unlink()
    assert results.data != measured(bundle, left).data  # other images: not comparable


def test_no_image_is_left(bundle: Path, tmp_path: Path) -> None:
    root = city(tmp_path, images=1)
    write_png(root / "leftImg8bit/val/ulm/0_leftImg8bit.png", np.zeros((SMALLEST - 1, 40, 3), np.uint8))
    with pytest.raises(DataError, match="data.val_split=val: no image is left; ulm/0 has 40x10 pixels"):
        measured(bundle, root, data__bad_images="skip")


def test_several_segmenters_measure_beside_the_first(bundle: Path, tmp_path: Path) -> None:
    """The first one's numbers have the names that they have alone; the others' have their own."""
    root = city(tmp_path / "city", labels=STREET)
    (tmp_path / "a").write_text("0.5")
    alone = measured(bundle, root)
    judged = measured(
        bundle, root,
        evaluate__segmenters=["tests.helpers.segmenters:from_file", "tests.helpers.segmenters:by_brightness"],
        evaluate__segmenters_weights=[str(tmp_path / "a"), "null"], evaluate__lpips="squeezenet1_1",
        evaluate__lpips_weights="random",
    )  # fmt: skip
    first, second = "tests-helpers-segmenters-from_file", "tests-helpers-segmenters-by_brightness"
    assert [each.segmenter for each in judged.judges.values()] == [
        "tests.helpers.segmenters:from_file", "tests.helpers.segmenters:by_brightness",
    ]  # fmt: skip
    assert judged.segmenter == alone.segmenter and judged.weights == alone.weights
    flat = judged.flat()
    assert {name: flat[name] for name in alone.flat()} == alone.flat()
    more = flat.keys() - alone.flat().keys()
    assert more == {
        *(f"{kind}miou-{judge}.sigma25" for kind in ("", "noisy.") for judge in (first, second)),
        f"clean.miou-{first}", f"clean.miou-{second}", "lpips.sigma25", "noisy.lpips.sigma25",
    }  # fmt: skip
    assert all(higher_is_better(name) == ("lpips" not in name) for name in more)
    brightness = measured(bundle, root, evaluate__segmenter="tests.helpers.segmenters:by_brightness")
    assert flat[f"miou-{second}.sigma25"] == brightness.restored["25"].miou
    assert judged.restored["25"].judges[second].iou == brightness.restored["25"].iou
    assert judged.rows[0].clean.judges[second] == brightness.rows[0].clean.miou
    for metric, judge in (("miou", None), (f"miou-{first}", first), (f"miou-{second}", second)):
        right, labelled, predicted = np.sum([row.restored["25"].counts[metric] for row in judged.rows], axis=0).T
        there, whole = labelled > 0, judged.restored["25"]
        miou = (right[there] / (labelled + predicted - right)[there]).mean()
        assert miou == pytest.approx(whole.judges[judge].miou if judge else whole.miou, abs=1e-12)
    head = judged.table().splitlines()[0]
    assert f"MIoU / MIoU {first} / MIoU {second} / LPIPS squeezenet1_1" in head
    judged.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == judged


def test_bad_judges_are_one_line(bundle: Path, tmp_path: Path) -> None:
    for key, value, words in (
        ("evaluate.segmenters", ["espnet-camvid"], "evaluate.segmenters=espnet-camvid: .*needs weights"),
        ("evaluate.segmenters", ["espnet-street"], "evaluate.segmenters=espnet-street"),
        ("evaluate.lpips_weights", str(tmp_path / "none.pth"), r"evaluate.lpips=alexnet.*none\.pth.*lpips_weights"),
    ):
        changes = {key: value} | ({"evaluate.lpips": "alexnet"} if "lpips" in key else {})
        with pytest.raises((SegmenterError, EvaluationError), match=words) as error:
            measured(bundle, city(tmp_path, labels=STREET), **changes)
        assert "\n" not in str(error.value)
    for changes, words in (
        ({"evaluate.segmenter": None, "evaluate.segmenters": ["espnet-camvid"]}, "evaluate.segmenter=espnet-camvid"),
        ({"evaluate.segmenters_weights": ["a"]}, "1 files for the 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            checkpoint.load_model(bundle)[1].replace(changes)


def test_the_second_evaluation_of_a_data_set_measures_restored_images_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers, bit for bit; an image that changed in its place is measured anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[str] = []
    counted = metrics.psnr

    def count_it(restored: torch.Tensor, clean: torch.Tensor) -> float:
        seen.append("psnr")
        return counted(restored, clean)

    monkeypatch.setattr("d2sm.metrics.psnr", count_it)
    root = city(tmp_path / "city", labels=STREET)
    first, count = measured(bundle, root), len(seen)
    assert measured(bundle, root) == first
    assert (count, len(seen) - count) == (6, 3)
    (file,) = (tmp_path / "cache/d2sm/scores").iterdir()
    file.write_text("{")
    assert measured(bundle, root) == first and len(seen) == 6 + 3 + 6
    image = root / "leftImg8bit/val/ulm/1_leftImg8bit.png"
    write_png(image, 255 - read_rgb(image))
    changed = measured(bundle, root)
    assert changed.noisy["25"].ssim != first.noisy["25"].ssim
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert measured(bundle, root) == changed


def test_an_evaluation_on_another_label_set(bundle: Path, tmp_path: Path) -> None:
    """Its classes in the results; segmenters have to give as many logits as it has."""
    root = city(tmp_path / "city", labels=STREET)
    file = tmp_path / "three.yaml"
    file.write_text(
        "classes:\n"
        "- {name: above, id: 23, colour: [70, 130, 180]}\n"
        "- {name: things, id: 26, colour: [0, 0, 142]}\n"
        "- {name: ground, id: 7, colour: [128, 64, 128]}\n"
        "ignore: [0]\n"
    )
    three = {"data__labels": str(file), "evaluate__segmenter": "tests.helpers.segmenters:of_three"}
    results = measured(bundle, root, **three)
    assert set(results.clean.iou) == {"above", "things", "ground"} and results.labels.startswith("three-")
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    with pytest.raises(SegmenterError, match="evaluate.segmenter=tests.*19.*3.*data.labels"):
        measured(bundle, root, data__labels=str(file))
    other = np.full_like(STREET, 11)
    with pytest.raises(DataError, match="holds the value 11.*data.labels=.*three.yaml.*evaluate.segmenter=null"):
        measured(bundle, city(tmp_path / "other", labels=other), **three)
    assert measured(bundle, root).labels == "cityscapes"


def test_the_kept_numbers_of_one_segmenter_are_not_those_of_another(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither has weights by which they could be told apart."""
    root = city(tmp_path / "city", labels=STREET)
    one, other = ({"evaluate__segmenter": f"tests.helpers.segmenters:by_{name}"} for name in ("brightness", "darkness"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = measured(bundle, root, **one), measured(bundle, root, **other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert measured(bundle, root, **other) == second
    assert second.rows[0].clean.counts != first.rows[0].clean.counts


@pytest.mark.parametrize("more_first", [True, False])
def test_segmenters_of_images_without_labels_neither_measure_nor_divide_the_kept_numbers(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more_first: bool
) -> None:
    """Those of an evaluation with further segmenters are those of one without."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    city(tmp_path / "city", images=2).joinpath("leftImg8bit/val/ulm").rename(tmp_path / "val")
    plain: dict[str, Any] = {"data__layout": "folder"}
    more = plain | {"evaluate__segmenters": ["tests.helpers.segmenters:by_darkness"]}
    both = [more, plain] if more_first else [plain, more]
    first, second = (measured(bundle, tmp_path, **changes) for changes in both)
    assert first == second and not first.segmenter and not first.judges
    assert len(list((tmp_path / "cache/d2sm/scores").iterdir())) == 1


def test_an_image_of_nan_ends_an_evaluation_in_one_line(bundle: Path, tmp_path: Path) -> None:
    """It has no PSNR; an infinite one, of equal images, is none of it."""
    root, config = city(tmp_path / "city"), checkpoint.load_model(bundle)[1]
    weights = {name: torch.full_like(value, torch.nan) for name, value in checkpoint.read_weights(bundle).items()}
    broken = tmp_path / "step-00000000"
    checkpoint.write(broken, weights=weights, state={}, config=config, meta={"step": 0})
    with pytest.raises(
        EvaluationError, match="^ulm/0: the restored image at sigma 25 holds NaN, which the model gave; "
    ):
        measured(broken, root)
    with pytest.raises(EvaluationError, match=r"^ulm/0: the noisy image at \S+ holds NaN; correct the degradation"):
        measured(bundle, root, evaluate__levels=["tests.helpers.degradations:undefined_at_black:1"])


def test_the_convention_of_pairs_names_no_gaussian_noise(bundle: Path, tmp_path: Path) -> None:
    for kind in ("clean", "noisy"):
        write_png(tmp_path / f"val/{kind}/a.png", np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    pairs = {"data__layout": "pairs", "noise__sigma": [25], "noise__draw": "list", "evaluate__segmenter": None}
    results = measured(bundle, tmp_path, **pairs)
    assert list(results.restored) == ["pair"] and results.convention == CONVENTION_OF_PAIRS
    assert "Gaussian noise" not in results.convention and "seeded" not in results.convention
