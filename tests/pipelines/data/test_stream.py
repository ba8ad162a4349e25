"""The stream of crops, through real Ray Data: the same crops however they are dealt, and those of the plan."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ray.data._internal.execution.no_progress_guard import NoProgressGuard
from ray.data.exceptions import ExecutionTimeoutError

from pipelines.config import Config
from pipelines.data import images, index, plan, splits, stream
from pipelines.data.images import DataError, ImageError, write_png
from tests.conftest import tiny_config
from tests.helpers.crops import begun, reference, same, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items(scenes_root: Path) -> pa.Table:
    return index.index(scenes_root, "train", labels="ignore")


@pytest.mark.slow
def test_the_workers_get_the_crops_of_the_plan(
    ray_session: None, scenes_root: Path, items: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; for one and two workers; in few or many tasks; from the start and from within an epoch."""
    config = tiny_config(scenes_root, tmp_path, data__shuffle_images=3)
    expected = reference(config, items)
    assert len(expected) == 6
    other = config.replace({"data.shuffle_images": 6, "train.num_workers": 4})
    chain = config.replace({"degrade.chain": "blur:0..3+jpeg:10..90", "train.num_workers": 2})
    streams = [
        begun(config, items),
        begun(config.replace({"train.num_workers": 1}), items),
        begun(config, items, first=4),
    ]
    monkeypatch.setattr(stream, "_MAX_TASKS", 2)
    streams += [
        begun(config, items, first=1),
        begun(config.replace({"train.num_workers": [1, 3]}), items, first=3),  # shares of 1, 1, 2 crops
        begun(other, items, first=2),
        begun(chain, items, first=2),
    ]
    *of_config, of_other, of_chain = side_by_side(streams)
    for found, first in zip(of_config, (0, 0, 4, 1, 3), strict=True):
        same(found, expected[first:])
    same(of_other, reference(other, items)[2:])
    same(of_chain, reference(chain, items)[2:])


def test_a_stream_waits_for_workers_that_are_busy(
    ray_session: None, scenes_root: Path, items: pa.Table, tmp_path: Path
) -> None:
    """A day of validation, by the clock of Ray's own guard against hangs: no block moves as long as no row is taken."""
    limit = stream.stream(tiny_config(scenes_root, tmp_path), items).context.execution_no_progress_timeout_s
    for seconds, ends in ((limit, False), (1800, True)):
        now = [0.0]
        guard = NoProgressGuard({}, seconds, clock=lambda now=now: now[0])
        now[0] = 86_400.0
        with pytest.raises(ExecutionTimeoutError) if ends else nullcontext():
            guard.check()


@given(batch=st.integers(1, 300), workers=st.integers(1, 64))
def test_shares_are_even_and_cover_the_batch(batch: int, workers: int) -> None:
    shares = [stream.worker_slice(batch, rank, workers) for rank in range(workers)]
    ends = [start + count for start, count in shares]
    assert [start for start, _ in shares] == [0, *ends[:-1]] and ends[-1] == batch
    counts = [count for _, count in shares]
    assert max(counts) - min(counts) <= 1
    longest = -(-batch // workers)
    assert max(counts) == longest and all(start + longest <= batch for start, _ in shares)


def prepared(config: Config, items: pa.Table, first: int, last: int) -> list[stream.WorkerBatch]:
    """What one ingest task emits for some steps, without Ray."""
    return list(stream.IngestTask(config, items)({"first": np.array([first]), "last": np.array([last])}))


def test_noise_does_not_depend_on_the_share(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    def noisy(workers: int) -> torch.Tensor:
        config = tiny_config(scenes_root, tmp_path, train__num_workers=workers)
        rows = [{k: v[0] for k, v in row.items()} for row in prepared(config, items, 0, 2)]
        return torch.cat([stream.to_tensors(row, CPU, config.degradation)[1] for row in rows])

    assert torch.equal(noisy(1), noisy(2))
    assert torch.equal(noisy(1), noisy(4))
    assert noisy(1).shape == (8, 3, 64, 64)


def test_noise_has_the_level_of_the_plan(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, train__num_workers=1)
    (row,) = prepared(config, items, 0, 1)
    clean, noisy, sigma = stream.to_tensors({name: column[0] for name, column in row.items()}, CPU, config.degradation)
    assert (clean.dtype, clean.min() >= 0, clean.max() <= 1) == (torch.float32, True, True)
    found = (noisy - clean).std(dim=(1, 2, 3)) * 255
    # 12,288 samples a crop: the standard deviation is known to 1 / sqrt(2 n) = 0.64 %; five of these.
    torch.testing.assert_close(found, sigma, rtol=0.032, atol=0)
    assert noisy.max() > 1 or noisy.min() < 0  # not clipped


CHAIN = "blur:0..3+motion:0..9+haze:0..2+poisson:50..500+noise:0..50+noise_clip:0..20+jpeg:10..90"


def test_every_degradation_is_the_same_for_any_share(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    def degraded(workers: int, chain: str) -> tuple[torch.Tensor, ...]:
        config = tiny_config(scenes_root, tmp_path, train__num_workers=workers, degrade__chain=chain)
        rows = [{k: v[0] for k, v in row.items()} for row in prepared(config, items, 0, 2)]
        parts = [stream.to_tensors(row, CPU, config.degradation) for row in rows]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    one, two, four = (degraded(workers, CHAIN) for workers in (1, 2, 4))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, four, strict=True))
    clean, noisy, sigma = one
    assert noisy.shape == clean.shape == (8, 3, 64, 64) and not torch.equal(noisy, clean)
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in (clean, noisy))
    assert len(set(sigma.tolist())) == 8 and sigma.max() < 54  # of two steps of noise
    assert torch.equal(clean, degraded(1, "")[0])  # the crops themselves stay where they are
    for known, alone in zip(degraded(1, ""), degraded(2, "noise:0..75"), strict=True):
        assert torch.equal(known, alone)


def test_tensors_of_the_default_are_those_of_before_the_chain() -> None:
    """A known answer, computed by the code of commit 0b06cc2 (torch 2.13, x86-64)."""
    config = Config().replace(
        {"data.crops_per_image": 3, "data.shuffle_images": 4, "train.batch_size": 4, "train.seed": 5, "loss.weight": 0}
    )
    table = plan.epoch_table(config, 10, 2).slice(0, 4)
    clean = np.random.Generator(np.random.Philox(1)).integers(0, 256, (4, 20, 28, 3), dtype=np.uint8)
    row = {"clean": clean, "sigma": table["sigma"].to_numpy(), "seed": table["seed"].to_numpy()}
    digests = [
        hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()[:16]
        for tensor in stream.to_tensors(row, CPU, config.degradation)
    ]
    assert digests == ["5836110fe67aef59", "0ff1a22ddb58f24c", "b128bf5bb2613084"]


def test_an_image_is_read_once_a_task(
    scenes_root: Path, items: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = images.read_rgb
    monkeypatch.setattr("pipelines.data.items.read_rgb", lambda path: read.append(path) or real(path))
    prepared(tiny_config(scenes_root, tmp_path), items, 0, 3)
    assert sorted(read) == items["image"].to_pylist()


def test_labels_are_cut_with_the_very_crop_and_only_when_asked_for(
    scenes_root: Path, items: pa.Table, tmp_path: Path
) -> None:
    labelled = index.index(scenes_root, "train")
    config = tiny_config(
        scenes_root, tmp_path, train__num_workers=1, loss__cross_entropy=1, loss__segmenter="espnet-scenes"
    )
    plain = config.replace({"loss.cross_entropy": 0})
    assert all("label" not in row for row in prepared(plain, labelled, 0, 3))
    rows = prepared(config, labelled, 0, 3)
    same(
        rows, [{**row, "label": found["label"]} for row, found in zip(prepared(plain, items, 0, 3), rows, strict=True)]
    )
    wanted, flips = [], 0
    for crop in plan.epoch_table(config, items.num_rows, 0).to_pylist():
        with Image.open(labelled["label"][crop["item"]].as_py()) as image:
            label = index.TRAIN_IDS[np.asarray(image)]
        top, left = int(crop["top"] * (label.shape[0] - 64 + 1)), int(crop["left"] * (label.shape[1] - 64 + 1))
        cut = label[top : top + 64, left : left + 64]
        wanted.append(cut[:, ::-1] if crop["flip"] else cut)
        flips += crop["flip"]
    assert 0 < flips < len(wanted)
    np.testing.assert_array_equal(np.concatenate([row["label"][0] for row in rows]), np.stack(wanted))
    found = stream.labels({name: column[0] for name, column in rows[0].items()}, CPU)
    assert found is not None
    assert (found.shape, found.dtype) == ((4, 64, 64), torch.uint8)


def test_an_image_without_labels_is_named(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, loss__cross_entropy=1, loss__segmenter="espnet-scenes")
    with pytest.raises(DataError, match=r"one of 6 images .*loss.cross_entropy=0"):
        splits.check_labels(config, items)
    splits.check_labels(config, index.index(scenes_root, "train"))
    without = config.replace({"loss.cross_entropy": 0})
    splits.check_labels(without, items)
    with pytest.raises(DataError, match=r"one of 6 images .*loss.class_regions=null"):
        splits.check_labels(without.replace({"loss.class_regions": 1}), items)


@pytest.fixture
def damaged(scenes_root: Path, tmp_path: Path) -> Path:
    """A copy of the scenes where one training image is cut short; its name comes second."""
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    bad = sorted(root.glob("leftImg8bit/train/*/*.png"))[1]
    bad.write_bytes(bad.read_bytes()[:2000])
    return bad


def table_of(items: pa.Table, before: Path, after: Path) -> pa.Table:
    """The index of the whole files, for those of another root."""
    moved = [path.replace(str(before), str(after)) for path in items["image"].to_pylist()]
    return items.set_column(1, "image", pa.array(moved))


def test_a_truncated_image_stops_the_run(damaged: Path, scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    root = damaged.parents[3]
    table = table_of(items, scenes_root, root)
    with pytest.raises(ImageError, match=f"{damaged}.*truncated") as error:
        prepared(tiny_config(root, tmp_path), table, 0, 3)
    assert "\n" not in str(error.value)


def test_a_truncated_image_is_skipped_listed_and_replaced(
    damaged: Path, scenes_root: Path, items: pa.Table, tmp_path: Path
) -> None:
    root = damaged.parents[3]
    table = table_of(items, scenes_root, root)
    config = tiny_config(root, tmp_path, data__bad_images="skip", train__num_workers=1)
    rows, good = prepared(config, table, 0, 3), prepared(config, items, 0, 3)
    listed = [entry for row in rows for entry in stream.skipped_files(str(row["skipped"][0]))]
    assert [name for name, _ in listed] == [items["name"][1].as_py()]
    assert str(damaged) in listed[0][1]
    assert "truncated" in listed[0][1]
    order = plan.epoch_table(config, items.num_rows, 0)["item"].to_numpy()
    crops, expected = (np.concatenate([row["clean"][0] for row in found]) for found in (rows, good))
    for item, crop, wanted in zip(order, crops, expected, strict=True):
        assert np.array_equal(crop, wanted) == (item != 1)
    # In their place stand real crops of other images: none is empty.
    assert (crops.reshape(len(crops), -1).std(axis=1) > 5).all()
    np.testing.assert_array_equal([row["seed"] for row in rows], [row["seed"] for row in good])


def test_what_replaces_a_bad_image_depends_on_no_task(
    damaged: Path, scenes_root: Path, items: pa.Table, tmp_path: Path
) -> None:
    """Also a run that is resumed within a task, where other images lie beside the bad one, sees the same crops."""
    root = damaged.parents[3]
    table = table_of(items, scenes_root, root)
    for seed in range(4):
        config = tiny_config(root, tmp_path, data__bad_images="skip", train__num_workers=1, train__seed=seed)
        whole = prepared(config, table, 0, 3)
        for step in range(3):
            (alone,) = prepared(config, table, step, step + 1)
            np.testing.assert_array_equal(alone["clean"], whole[step]["clean"])


def test_nothing_but_bad_images(damaged: Path, items: pa.Table, tmp_path: Path) -> None:
    table = items.set_column(1, "image", pa.array([str(damaged)] * items.num_rows))
    config = tiny_config(damaged.parents[3], tmp_path, data__bad_images="skip")
    with pytest.raises(DataError, match=f"none of 6 images can be read: {damaged}"):
        prepared(config, table, 0, 3)


def test_a_crop_larger_than_the_image(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, data__crop_size=97)
    with pytest.raises(DataError, match=r"data.crop_size=97: scenes/.* 192x96 pixels"):
        splits.check_sizes(config, items)
    splits.check_sizes(config.replace({"data.crop_size": 96}), items)  # the very size fits


def test_a_crop_of_the_very_size_of_the_image(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, data__crop_size=96)
    assert all(row["clean"].shape == (1, 2, 96, 96, 3) for row in prepared(config, items, 0, 3))


def test_a_batch_larger_than_the_split(scenes_root: Path, items: pa.Table, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, train__batch_size=16)
    with pytest.raises(DataError, match=r"train.batch_size=16: .* 12 crops .*data.crops_per_image"):
        splits.check_sizes(config, items)


def test_pairs_are_cut_at_the_same_place_and_get_no_more_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        clean = rng.integers(0, 200, (80, 100, 3), dtype=np.uint8)
        write_png(tmp_path / f"pairs/train/clean/{number}.png", clean)
        write_png(tmp_path / f"pairs/train/noisy/{number}.png", clean + np.uint8(number + 1))
    table = index.index(tmp_path / "pairs", "train", layout="pairs")
    config = tiny_config(
        tmp_path / "pairs", tmp_path, data__layout="pairs", noise__sigma=[25], noise__draw="list", train__num_workers=1
    )
    rows = prepared(config, table, 0, 2)
    for row in rows:
        share = {name: column[0] for name, column in row.items()}
        clean, noisy, sigma = stream.to_tensors(share, CPU, config.degradation)
        difference = (noisy - clean) * 255
        assert (sigma == 25).all()
        torch.testing.assert_close(
            difference, difference.mean((1, 2, 3), keepdim=True).expand_as(difference), atol=1e-4, rtol=0
        )
        assert set(difference.mean((1, 2, 3)).round().int().tolist()) <= {1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.long
def test_a_data_set_larger_than_the_object_store(tmp_path: Path) -> None:
    """Nothing is spilled to disk, and a task holds little more than its own images' crops."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs Linux, to see what memory is a process's own")
    call = [sys.executable, "-m", "tests.helpers.streamed", str(tmp_path), "80"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["prepared"]["on_disk_mib"] > 200
    for way in ("png", "prepared"):
        assert found[way]["crops"] == 2 * 40 * 16
        assert found[way]["spilled_mib"] == 0
        assert found[way]["store_mib"] <= 90
        assert 20 < found[way]["task_mib"] < 400


def test_an_ingest_task_imports_no_torch(scenes_root: Path, tmp_path: Path) -> None:
    """A process that unpickles and runs one, as Ray's do; torch would cost it seconds and hundreds of megabytes."""
    config = tiny_config(scenes_root, tmp_path, loss__cross_entropy=1, loss__segmenter="espnet-scenes")
    task = stream.IngestTask(config, index.index(scenes_root, "train"))
    (tmp_path / "task").write_bytes(pickle.dumps(task))
    code = (
        "import pickle, sys, numpy as np; task = pickle.load(open(sys.argv[1], 'rb')); "
        "rows = list(task({'first': np.array([0]), 'last': np.array([1])})); "
        "print(len(rows), *sorted({'torch', 'mlflow', 'ray.train'} & set(sys.modules)))"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "task")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2"], done.stdout + done.stderr[-2000:]
