"""What is measured of one photograph, without an evaluation around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d2sm import metrics
from d2sm.inference import restore
from pipelines.data.images import ImageError
from pipelines.data.splits import evaluation_images
from pipelines.inference import samples
from pipelines.inference.measuring import SKIPPED, Measurer, score
from pipelines.networks.models import build
from tests.conftest import tiny_config
from tests.helpers.segmenters import segmenter

CPU = torch.device("cpu")
SEGMENTER = "tests.helpers.segmenters:segmenter"


def test_an_item_and_its_sample_give_the_same_measurements(scenes_root: Path, tmp_path: Path) -> None:
    """Those of a plain loop over the noise levels."""
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25, 50], evaluate__segmenter=SEGMENTER)
    network, judge = build(config.model).eval(), segmenter()
    measurer = Measurer(config, network, judge, device=CPU)
    (item, *_) = evaluation_images(config).to_pylist()
    sample = samples.load(config, item, labels=True)
    found = measurer.sample(sample)
    assert [(one["kind"], one["level"]) for one in found] == [
        ("clean", ""), ("noisy", "25"), ("restored", "25"), ("noisy", "50"), ("restored", "50"),
    ]  # fmt: skip
    assert all(str(one) == str(same) for one, same in zip(found, measurer.item(item), strict=True))  # nan included
    for one, (level, sigma, noisy) in zip(found[2::2], sample.noisy, strict=True):
        image = restore(network, noisy, sigma).clamp(0, 1)
        assert one["psnr"] == metrics.psnr(image[0], sample.clean[0])
        assert one["ssim"] == metrics.ssim(image[0], sample.clean[0])
        with torch.no_grad():
            seen = judge(image).max(1).indices[0]
        assert sample.label is not None
        assert one["confusion"] == metrics.confusion(seen, sample.label).flatten().tolist()
        of_all = score(found, "restored", level, segmented=True)
        assert (of_all.psnr, of_all.ssim) == (one["psnr"], one["ssim"]) and of_all.miou is not None


def test_an_unreadable_item_is_one_measurement_that_says_why(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path)
    item = {**evaluation_images(config).to_pylist()[0], "image": str(tmp_path / "cut.png")}
    (tmp_path / "cut.png").write_bytes(np.arange(40, dtype=np.uint8).tobytes())
    network = build(config.model).eval()
    with pytest.raises(ImageError, match="cut.png"):
        Measurer(config, network, None, device=CPU).item(item)
    (one,) = Measurer(config.replace({"data.bad_images": "skip"}), network, None, device=CPU).item(item)
    assert one["kind"] == SKIPPED and "cut.png" in one["why"]
