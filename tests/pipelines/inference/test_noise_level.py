"""The estimated noise level of pictures with areas of one colour, whatever that is, is that of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage.restoration import estimate_sigma

from pipelines.inference.noise_level import estimate


def noisy(kind: Any = np.uint8) -> np.ndarray:
    """Grey with noise of sigma 25."""
    values = 128 + np.random.default_rng(0).normal(0, 25, (400, 256))
    return (values.clip(0, 255) * (np.iinfo(kind).max / 255)).round().astype(kind)


def test_without_such_areas_it_is_scikit_image_s() -> None:
    for kind in (np.uint8, np.uint16):
        image = noisy(kind)
        wanted = estimate_sigma(image.astype(np.float32)) * 255 / np.iinfo(kind).max
        assert estimate(image) == pytest.approx(wanted, rel=1e-9)
        assert estimate(np.dstack([image] * 3)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [0, 1, 100, 255])
def test_an_area_of_one_colour_does_not_count(kind: Any, value: int) -> None:
    for part in (0.3, 0.55, 0.9):
        image = noisy(kind)
        image[: round(400 * part)] = value * (np.iinfo(kind).max // 255)
        assert estimate(image) == pytest.approx(25, abs=2)  # 2,560 details: known to 2.3 %, times three


def test_an_image_of_one_colour_has_no_noise() -> None:
    for value in (0, 7, 255):
        assert estimate(np.full((9, 12, 3), value, np.uint8)) == 0
