"""Figures of finished runs: the numbers they show are right. How they look is judged by eye."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.cli.main import main
from d2sm.features import features
from pipelines.comparison.figures import crops, curves, tsne
from pipelines.comparison.figures.curves import Curve
from pipelines.comparison.photographs import ComparedPhotograph
from pipelines.comparison.rows import FinishedRun, Row, RunsError, read_rows
from pipelines.inference.samples import tensor
from pipelines.tracking import store
from tests.helpers.finished_runs import log_entries, log_training, write_row
from tests.helpers.reference import eq1

SIDE = 32


@pytest.fixture(scope="module")
def folders(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished runs on drawn scenes, logged to one MLflow store: two seeds, a resumed run, a longer queue."""
    folder = tmp_path_factory.mktemp("runs")
    l1 = write_row(scenes_root, folder, "ffdnet_l1_cpu").runs[0]
    again = write_row(scenes_root, folder, "ffdnet_l1_cpu", train__seed=1).runs[0]
    d2sm = write_row(scenes_root, folder, "ffdnet_d2sm_cpu").runs[0]
    log_training(l1, log_entries(2, 40, rate=4.0))
    log_training(again, log_entries(2, 40, rate=2.0, scale=1.2))
    # Stopped at step 20, gone on from the checkpoint of step 16 by another machine: 18 and 20 were logged before.
    first = log_training(d2sm, log_entries(2, 20, rate=1.0, scale=0.9, d2sm=0.5))
    log_training(d2sm, log_entries(18, 40, rate=2.0, scale=0.9, d2sm=0.4), first)
    longer = write_row(scenes_root, folder, "ffdnet_d2sm_cpu", loss__queue_size=1024).runs[0]
    log_training(longer, log_entries(2, 40, rate=1.5, scale=0.8, d2sm=0.3))
    return [l1.folder, again.folder, d2sm.folder, longer.folder]


@pytest.fixture(scope="module")
def rows(folders: list[Path]) -> list[Row]:
    return read_rows(folders[:3], trust=True)


def test_a_history_counts_the_seconds_of_training_only(rows: list[Row]) -> None:
    found = curves.history(rows[1].runs[0])
    assert list(found) == ["loss.l1", "loss.d2sm"]
    curve = found["loss.l1"]
    assert curve.steps.tolist() == list(range(2, 41, 2))
    assert curve.values == pytest.approx(0.9 / curve.steps)
    assert curve.seconds == pytest.approx([step if step <= 20 else 20 + (step - 20) / 2 for step in range(2, 41, 2)])
    assert found["loss.d2sm"].values.tolist() == [0.5] * 10 + [0.4] * 10
    assert list(curves.history(rows[0].runs[0])) == ["loss.l1"]


def test_a_history_that_is_not_there_is_refused(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rows[0].runs[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    away = shutil.copytree(run.folder, tmp_path / "runs" / run.folder.name)  # without its store
    with pytest.raises(RunsError, match=r"MLflow run \w+ .*sqlite:.*none\.db; .*MLFLOW_TRACKING_URI"):
        curves.history(FinishedRun(away, run.config, run.results, 1, "", run.run_id, ""))
    assert not (tmp_path / "none.db").exists()  # looking makes no store
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    client = store.prepare(run.uri)
    empty = client.create_run(client.get_experiment_by_name("d2sm").experiment_id).info.run_id
    with pytest.raises(RunsError, match=f"{empty} .*steps_per_second"):
        curves.history(FinishedRun(run.folder, run.config, run.results, 1, "", empty, ""))


def test_seeds_are_averaged_at_the_steps_both_have() -> None:
    a = Curve(np.array([2, 4, 6]), np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0]))
    b = Curve(np.array([4, 6, 8]), np.array([4.0, 6.0, 8.0]), np.array([0.0, 2.0, 4.0]))
    both = curves.mean([a, b])
    assert (both.steps.tolist(), both.seconds.tolist(), both.values.tolist()) == ([4, 6], [3.0, 4.5], [10.0, 16.0])


def test_smoothing_is_centred_and_keeps_the_ends() -> None:
    values = np.array([9.0, 0.0, 3.0, 6.0, 1.0])
    curve = Curve(np.arange(5), np.arange(5.0), values)
    assert curves.smooth(curve, 1).values == pytest.approx(values)
    assert curves.smooth(curve, 3).values == pytest.approx([9, 4, 3, 10 / 3, 1])
    assert curves.smooth(curve, 5).values == pytest.approx([9, 4, 19 / 5, 10 / 3, 1])
    line = Curve(np.arange(50), np.arange(50.0), np.arange(50.0))
    assert curves.smooth(line, 9).values == pytest.approx(line.values)  # neither lags nor bends


def photograph(**images: np.ndarray) -> ComparedPhotograph:
    return ComparedPhotograph("drawn", "25", images, {})


def texture(seed: int, height: int = 96, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_crop_is_where_the_rows_differ() -> None:
    clean = np.full((100, 200, 3), 90, np.uint8)
    one, other = clean.copy(), clean.copy()
    one[:, :100] = 120  # wrong in both alike
    other[:, :100] = 120
    other[60:100, 150:190] = 130
    crop = crops.choose(photograph(noisy=clean, one=one, other=other, clean=clean))
    assert (crop.side, crop.top, crop.left) == (40, 60, 150)
    assert crop.difference == pytest.approx(40 / 255, rel=1e-4)
    alone = crops.choose(photograph(noisy=clean, other=other, clean=clean))
    assert alone.left == 150 and alone.top == 60  # a single row: where it errs most
    segmented = {name: np.zeros((100, 200), np.uint8) for name in ("noisy", "one", "other", "clean")}
    segmented["one"][:40, 20:60] = segmented["other"][:40, 20:60] = 3  # wrong, but alike
    segmented["other"][20:60, 80:100] = 7
    crop = crops.choose(ComparedPhotograph("drawn", "25", {k: clean for k in segmented}, segmented))
    assert (crop.top, crop.difference) == (20, 0.5) and 60 <= crop.left <= 80
    del segmented["other"]
    crop = crops.choose(ComparedPhotograph("drawn", "25", {k: clean for k in segmented}, segmented))
    assert (crop.top, crop.left, crop.difference) == (0, 20, 1.0)


def test_errors_are_signed_around_grey() -> None:
    image = np.array([[[100, 101, 99], [255, 0, 90]]], np.uint8)
    clean = np.array([[[100, 100, 100], [0, 255, 122]]], np.uint8)
    assert crops.error(image, clean).tolist() == [[[128, 132, 124], [255, 0, 0]]]


@pytest.mark.parametrize("patch", [None, 16])
def test_distance_and_divergence_are_those_of_the_losss_samples(rows: list[Row], patch: int | None) -> None:
    phi_name = "efficientnet_lite0.blocks.4"  # whose maps patches tile
    config = tsne.with_features_of(rows).replace({"loss.patch_size": patch, "loss.features": phi_name})
    assert config.recipe == "ffdnet_d2sm_cpu" and config.data.crop_size == SIDE
    clean, noisy = texture(0), texture(1)
    found = tsne.embed([photograph(noisy=noisy, same=clean, clean=clean)], config, tsne.phi_of(config))
    assert found.distance["same"] == 0 and found.divergence["same"] == pytest.approx(0, abs=1e-9)
    count = 15 * (1 if patch is None else 4)  # 3 x 5 crops
    assert {name: points.shape for name, points in found.points.items()} == dict.fromkeys(
        ("noisy", "same", "clean"), (count, 2)
    )
    assert ("w/ internal" in found.description) == (patch is not None)
    phi, side = features(config.loss.features, weights="random"), patch or SIDE
    samples = []
    for image in (noisy, clean):
        crops = [image[y : y + SIDE, x : x + SIDE] for y in range(0, 96, SIDE) for x in range(0, 160, SIDE)]
        maps, cells = [phi(tensor(crop))[0] for crop in crops], side // phi.stride
        at = range(0, SIDE // phi.stride, cells)
        cut = [m[:, i : i + cells, j : j + cells].flatten() for m in maps for i in at for j in at]
        samples.append(np.array([(part / part.norm()).numpy() for part in cut]))
    assert len(samples[0]) == count
    distance = np.linalg.norm(samples[0] - samples[1], axis=1).mean()
    assert found.distance["noisy"] == pytest.approx(distance, rel=1e-4)
    expected = eq1(*samples) / count
    assert found.divergence["noisy"] == pytest.approx(expected, rel=1e-3) and expected > 0


def test_a_photograph_smaller_than_a_crop_is_refused(rows: list[Row]) -> None:
    config, small, one = tsne.with_features_of(rows), texture(0, 31, 160), texture(0, 32, 32)
    with pytest.raises(RunsError, match=r"drawn: 160x31 .*data\.crop_size=32"):
        tsne.embed([photograph(noisy=small, clean=small)], config, tsne.phi_of(config))
    with pytest.raises(RunsError, match=r"1 samples .*data\.crop_size=32"):
        tsne.embed([photograph(noisy=one, clean=one)], config, tsne.phi_of(config))


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        ("figures", {"data__crop_size": 128}, r"t-SNE: \S+: 192x96 pixels hold no crop of data\.crop_size=128"),
        ("report", {"loss__features_weights": "none.pth"}, r"none\.pth"),
    ],
)
def test_what_t_sne_lacks_is_said_before_anything_is_drawn(
    verb: str,
    changes: dict[str, object],
    message: str,
    scenes_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the learning curves, too, which would be refused here."""
    run = write_row(scenes_root, tmp_path, "ffdnet_l1_cpu", **changes).runs[0]
    out = tmp_path / "out" / "report.html" if verb == "report" else tmp_path / "out"
    assert main([verb, "--trust", str(run.folder), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "restoring" not in said and not list((tmp_path / "out").iterdir())


def test_the_verb_draws_everything_and_logs_it(
    folders: list[Path], rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", "--trust", *map(str, folders[:3]), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    expected = ["comparison-1.png", "comparison-2.png", "convergence.png", "convergence.svg", "tsne.png", "tsne.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected  # there are two photographs
    for name in expected:
        assert str(tmp_path / name) in printed
        if name.endswith("png"):
            pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    uri = rows[0].runs[0].uri
    client = store.prepare(uri)
    record = client.search_runs(
        [client.get_experiment_by_name("d2sm").experiment_id], "attributes.run_name = 'figures'"
    )[0]
    assert record.info.status == "FINISHED" and record.info.run_id in printed
    assert sorted(item.path for item in client.list_artifacts(record.info.run_id)) == expected
    ids = {name: [run.run_id for run in row.runs] for name, row in zip(("L1", "D2SM"), rows)}
    assert json.loads(record.data.tags["d2sm.figures"]) == ids and len(ids["L1"]) == 2
    assert f"runs/{ids['L1'][1]}" in record.data.tags["mlflow.note.content"]
    numbers = record.data.metrics
    assert set(numbers) == {f"{what}.{name}" for what in ("distance", "kl") for name in ("noisy", "L1", "D2SM")}
    assert numbers["distance.noisy"] > 0 and f"kl.D2SM  {numbers['kl.D2SM']:.4g}" in printed


def test_queue_sizes_side_by_side_and_bad_input(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = map(str, folders[2:])
    assert main(["figures", "--trust", *both, "--only", "convergence", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convergence.png", "convergence.svg"]
    text = (tmp_path / "convergence.svg").read_text()
    for shown in ("queue_size=512 (1 seed)", "queue_size=1024 (1 seed)", "D2SM loss relative to queue_size=512, %"):
        assert f"<!-- {shown} -->" in text  # as matplotlib marks text that it draws as paths
    assert main(["figures", str(tmp_path)]) == 2
    assert f"{tmp_path}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "compared"),
    [({"data__bad_images": "skip"}, True), ({"data__flip": False}, False), ({"noise__sigma": [0, 50]}, False)],
)
def test_differences_are_drawn_of_rows_that_saw_the_same_crops_and_noise(
    rows: list[Row], scenes_root: Path, tmp_path: Path, changes: dict[str, object], compared: bool
) -> None:
    other = write_row(scenes_root, tmp_path, "ffdnet_d2sm_cpu", **changes)
    log_training(other.runs[0], log_entries(2, 40, rate=1.0, d2sm=0.5))
    both = [rows[0], *read_rows([other.runs[0].folder])]
    curves.draw(both, tmp_path / "convergence")
    assert ("relative to" in (tmp_path / "convergence.svg").read_text()) == compared
