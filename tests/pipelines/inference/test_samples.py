"""What evaluation restores: noise by the item's name and level, or the photographed partner of a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d2sm.chain import parse
from d2sm.noise import add_noise, seed_of
from pipelines.config import Config
from pipelines.data.images import write_png
from pipelines.data.index import index
from pipelines.inference import samples

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def item(root: Path, layout: str) -> dict[str, object]:
    return index(root, "val", layout=layout, hold_out=False).to_pylist()[0]


def test_each_level_is_seeded_by_the_name(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PIXELS)
    config = Config().replace({"evaluate.sigmas": [12.5, 50, 25], "data.layout": "folder"})
    sample = samples.load(config, item(tmp_path, "folder"))
    assert (sample.name, sample.label) == ("a", None)
    assert torch.equal(sample.clean[0].permute(1, 2, 0) * 255, torch.from_numpy(PIXELS).float())
    assert [(level, sigma) for level, sigma, _ in sample.noisy] == [("12.5", 12.5), ("50", 50.0), ("25", 25.0)]
    for _, sigma, noisy in sample.noisy:
        assert torch.equal(noisy, add_noise(sample.clean, sigma=torch.tensor([sigma]), seeds=[seed_of("a")]))
        assert noisy.min() < 0  # not clipped
    assert sample.shown is sample.noisy[1]


def test_a_chain_is_done_at_each_level_by_the_name(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PIXELS)
    levels = ["jpeg:10", "blur:2+noise:10", "noise:25", "noise_clip:50"]
    config = Config().replace({"evaluate.levels": levels, "data.layout": "folder"})
    sample = samples.load(config, item(tmp_path, "folder"))
    names = [("jpeg10", 0), ("blur2+noise10", 10), ("25", 25), ("noise_clip50", 50)]
    assert [(level, sigma) for level, sigma, _ in sample.noisy] == names
    for text, noisy in zip(levels, sample.noisy, strict=True):
        chain = parse(text)
        expected = chain.degraded(sample.clean, levels=torch.tensor([chain.level]), seeds=[seed_of("a")])
        assert torch.equal(noisy.image, expected) and not torch.equal(expected, sample.clean)
    assert torch.equal(sample.noisy[2].image, add_noise(sample.clean, sigma=torch.tensor([25.0]), seeds=[seed_of("a")]))


def test_a_pair_has_the_photographed_noise_and_the_configured_sigma(tmp_path: Path) -> None:
    write_png(tmp_path / "clean/a.png", PIXELS)
    write_png(tmp_path / "noisy/a.png", 255 - PIXELS)
    config = Config().replace({"data.layout": "pairs", "noise.sigma": [30], "noise.draw": "list"})
    ((level, sigma, noisy),) = samples.load(config, item(tmp_path, "pairs")).noisy
    assert (level, sigma) == ("pair", 30)
    np.testing.assert_array_equal(samples.pixels(noisy), 255 - PIXELS)


@pytest.mark.parametrize("values", [[-0.2, 0.0, 0.5, 1.0, 1.7], [0.4999 / 255, 0.5001 / 255, 254.6 / 255]])
def test_pixels_are_clamped_and_rounded(values: list[float]) -> None:
    found = samples.pixels(torch.tensor(values).view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert found[0, :, 1].tolist() == [round(min(max(value, 0.0), 1.0) * 255) for value in values]


def test_tensor_and_pixels_are_inverse() -> None:
    np.testing.assert_array_equal(samples.pixels(samples.tensor(PIXELS)), PIXELS)
