"""The demo's segmenter: it learns, its file loads back, is the same for a seed, and reads scenes well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from d2sm.metrics import CLASSES, confusion, miou
from d2sm.noise import add_noise, seed_of
from pipelines.networks import segmenters
from pipelines.runtime.threads import torch_threads
from pipelines.scenes import segmenter as scene_segmenter
from pipelines.scenes import write_scenes

FEW: dict[str, Any] = {"steps": 12, "batch": 2, "crop": (64, 96), "p": 1, "q": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small scenes."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set", train=4, val=1, height=96, width=160)


def test_the_loss_falls_and_progress_counts_every_step(root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    scene_segmenter.fit(root, out=tmp_path / "s.safetensors", **FEW, progress=lambda *call: seen.append(call))
    assert [step for step, _, _ in seen] == list(range(1, 13)) and {steps for _, steps, _ in seen} == {12}
    losses = [loss for _, _, loss in seen]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_the_file_loads_back_as_a_segmenter(root: Path, tmp_path: Path) -> None:
    out = scene_segmenter.fit(root, out=tmp_path / "deep" / "s.safetensors", **FEW)
    network = segmenters.load("espnet-scenes", weights=out)
    assert network(torch.rand(1, 3, 40, 56)).shape == (1, len(CLASSES), 40, 56)
    assert [path.name for path in out.parent.iterdir()] == ["s.safetensors"]


def test_the_same_seed_gives_the_same_weights(root: Path, tmp_path: Path) -> None:
    # Tensors, not bytes: safetensors writes its metadata in no fixed order.
    first, again, other = (
        load_file(scene_segmenter.fit(root, out=tmp_path / name, **FEW, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_it_computes_with_one_thread_whatever_the_machine_has(root: Path, tmp_path: Path) -> None:
    seen = set()
    with torch_threads(2):
        scene_segmenter.fit(
            root, out=tmp_path / "s.safetensors", **FEW, progress=lambda *call: seen.add(torch.get_num_threads())
        )
        assert seen == {1} and torch.get_num_threads() == 2


def test_it_leaves_torch_random_numbers_alone(root: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    scene_segmenter.fit(root, out=tmp_path / "s.safetensors", **{**FEW, "steps": 1})
    assert torch.equal(torch.get_rng_state(), before)


def test_class_weights_lift_rare_classes_and_skip_ignored_pixels() -> None:
    labels = torch.tensor([[0] * 90 + [1] * 10 + [255] * 50], dtype=torch.uint8)
    weight = scene_segmenter.class_weights(labels)
    assert weight[1] / weight[0] == pytest.approx(9**0.3, rel=1e-5)
    assert weight[0] * 0.9 + weight[1] * 0.1 == pytest.approx(1.0, rel=1e-5)
    assert not weight[2:].any()


@pytest.mark.parametrize(
    ("wrong", "says"), [({"steps": 0}, "steps=0"), ({"batch": 0}, "batch=0"), ({"crop": (97, 96)}, "crop=")]
)
def test_bad_numbers_are_named(root: Path, tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scene_segmenter.fit(root, out=tmp_path / "s.safetensors", **{**FEW, **wrong})
    assert not (tmp_path / "s.safetensors").exists()


def test_a_root_without_scenes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"write the scenes first"):
        scene_segmenter.fit(tmp_path, out=tmp_path / "s.safetensors", **FEW)


@pytest.mark.slow
@pytest.mark.long
def test_clean_scenes_are_read_well_and_noisy_ones_are_not(tmp_path: Path) -> None:
    """The bounds leave room for other machines' rounding."""
    root = write_scenes(tmp_path / "scenes")
    network = segmenters.load("espnet-scenes", weights=scene_segmenter.fit(root, out=tmp_path / "s.safetensors"))
    images, labels = scene_segmenter.read_split(root, "val")
    clean, seeds = images.float() / 255, [seed_of(f"val{i}") for i in range(len(images))]
    scores = []
    for sigma in (0.0, 25.0, 50.0):
        noisy = add_noise(clean, sigma=torch.full((len(clean),), sigma), seeds=seeds)
        with torch.no_grad():
            scores.append(miou(confusion(network(noisy).argmax(1), labels.long())))
    assert scores[0] > 0.45  # measured 0.494
    assert scores[1] < 0.92 * scores[0]  # measured 0.415
    assert scores[2] < 0.55 * scores[0]  # measured 0.199
