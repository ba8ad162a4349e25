"""The photographs that figures and report show, and the rows' short names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from d2sm.inference import restore
from d2sm.noise import seed_of
from pipelines import checkpoint, evaluate, runs
from pipelines.config import Config
from pipelines.figures.scene import Scene, names, scenes
from pipelines.images import read_rgb
from pipelines.models import build
from pipelines.recipes import recipe
from pipelines.runs import Row
from tests.test_runs import finished, results


class Brightness(nn.Module):
    """A segmenter by brightness alone: 19 steps from black to white."""

    def forward(self, image: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, 19).view(1, -1, 1, 1)
        return -(image.mean(1, keepdim=True) - steps).abs()


def by_brightness(weights: Path | None) -> nn.Module:
    return Brightness()


def row(root: Path, folder: Path, name: str, **changes: object) -> Row:
    """A finished run's row, on drawn scenes, with small features and that segmenter."""
    drawn = {
        "data.root": str(root), "data.crop_size": 32, "evaluate.segmenter": "tests.test_scene:by_brightness",
        "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "train.storage": str(folder),
    }  # fmt: skip
    config = recipe(name).replace(drawn | {key.replace("__", "."): value for key, value in changes.items()})
    (found,) = runs.gather([finished(folder / "-".join([name, *map(str, changes.values())]), config, results())])
    (run,) = found.runs
    network = build(run.config.model)
    generator = torch.Generator().manual_seed(seed_of(name))
    with torch.no_grad():  # a fresh FFDNet repeats its input, so that all rows would look alike
        for weight in network.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)
    save_file(network.state_dict(), run.checkpoint / checkpoint.MODEL)
    return found


@pytest.fixture(scope="module")
def rows(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("runs")
    l1, d2sm = row(scenes_root, folder, "ffdnet_l1_cpu"), row(scenes_root, folder, "ffdnet_d2sm_cpu", train__seed=1)
    return [l1, d2sm]


@pytest.fixture(scope="module")
def drawn(rows: list[Row]) -> list[Scene]:
    return scenes(rows, count=5)


def test_scenes_are_what_the_evaluation_measured(rows: list[Row], drawn: list[Scene]) -> None:
    config = rows[0].config
    items = evaluate.images(config).to_pylist()
    assert [scene.name for scene in drawn] == [item["name"] for item in items]  # there are two in all
    for scene, item in zip(drawn, items):
        assert list(scene.images) == list(scene.classes) == ["noisy", "L1", "D2SM", "clean"]
        assert scene.level == "35"
        clean = evaluate.tensor(read_rgb(item["image"]))
        _, sigma, noisy = evaluate.noisy_images(config, item["name"], None, clean)[1]
        restored = restore(checkpoint.load_model(rows[1].runs[0].checkpoint)[0], noisy, sigma).clamp(0, 1)
        for name, image in (("noisy", noisy.clamp(0, 1)), ("D2SM", restored), ("clean", clean)):
            expected = (image[0].permute(1, 2, 0).numpy() * 255).round()
            assert np.array_equal(scene.images[name], expected)
            assert np.array_equal(scene.classes[name], Brightness()(image).argmax(1)[0].numpy())
        assert not np.array_equal(scene.images["L1"], scene.images["D2SM"])


def test_the_segmenter_can_be_left_out(rows: list[Row]) -> None:
    (scene,) = scenes(rows, count=1, segmented=False)
    assert scene.classes == {} and scene.images["clean"].shape == (96, 192, 3)


def test_no_rows_are_refused() -> None:
    with pytest.raises(runs.RunsError, match="no runs given"):
        scenes([], count=1)


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
def test_short_names_tell_rows_apart(settings: list[tuple[str, dict[str, object]]], expected: list[str] | None) -> None:
    found = []
    for name, changes in settings:
        config = (recipe(name) if name else Config()).replace(changes)
        run = runs.Finished(Path(), config, results(), 1, "", "", "")
        found.append(Row(runs.label(config), (run,)))
    assert names(found) == (expected or ["queue_size=1024 patch_size=none", "queue_size=2048 patch_size=16"])
