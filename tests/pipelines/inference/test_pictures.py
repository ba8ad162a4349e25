"""Pictures of an evaluation: which photographs, in which order, with which colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2sm.metrics import COLOURS
from pipelines.inference.pictures import grid, spread
from tests.helpers.segmenters import Brightness


@pytest.mark.parametrize(
    "total, count, expected",
    [(10, 0, []), (10, 1, [0]), (10, 2, [0, 9]), (10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (1, 2, [0])],
)
def test_spread_takes_first_last_and_evenly_between(total: int, count: int, expected: list[int]) -> None:
    assert spread(total, count) == expected


def test_images_side_by_side_and_their_segmentation_below() -> None:
    images = [torch.full((1, 3, 4, 5), value) for value in (-0.5, 0.5, 1.5)]  # clamped to black, grey, white
    plain, segmented = grid(images, None), grid(images, Brightness())
    assert plain.shape == (4, 3 * 5 + 2 * 6, 3) and segmented.shape == (4 + 6 + 4, 27, 3)
    assert [plain[0, column].tolist() for column in (0, 5, 11, 16, 22)] == [
        [0] * 3, [255] * 3, [128] * 3, [255] * 3, [255] * 3
    ]  # fmt: skip
    np.testing.assert_array_equal(segmented[:4], plain)
    assert (segmented[4:10] == 255).all()
    assert [segmented[10, column].tolist() for column in (0, 11, 22)] == COLOURS[[0, 9, 18]].tolist()
