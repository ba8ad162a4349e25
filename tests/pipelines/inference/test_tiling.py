"""Tiles chosen from the free memory: the whole image where it fits, else tiles that give the same result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from d2sm.inference import restore
from d2sm.models import FFDNet
from pipelines.inference import tiling
from pipelines.inference.samples import pixels, tensor
from pipelines.inference.tiling import SHARE, UNSTATED, restore_pixels, smallest_tile, tile_for
from tests.helpers.networks import stirred


class Counting(FFDNet):
    """An FFDNet that knows the largest window it was shown, in pixels."""

    most = 0

    def forward(self, noisy: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        self.most = max(self.most, noisy.shape[2] * noisy.shape[3])
        return super().forward(noisy, sigma)


@pytest.mark.parametrize("sharing", [1, 3])
def test_little_memory_means_tiles_with_the_same_result(monkeypatch: pytest.MonkeyPatch, sharing: int) -> None:
    torch.manual_seed(0)
    model, noisy = stirred(Counting(width=8, depth=3)).eval(), torch.rand(1, 3, 150, 210)
    assert tile_for(model, noisy, "auto") is None
    whole = restore(model, noisy, 25.0)
    free = sharing * 2 * 90 * 90 * model.bytes_per_pixel
    monkeypatch.setattr(tiling, "free_bytes", lambda device: free)
    tile = tile_for(model, noisy, "auto", sharing=sharing)
    assert tile == 90 - 2 * model.receptive_field
    model.most = 0
    torch.testing.assert_close(restore(model, noisy, 25.0, tile=tile), whole, rtol=0, atol=1e-6)
    assert model.most * model.bytes_per_pixel <= SHARE * free / sharing


def test_what_was_asked_for_is_taken_and_a_silent_network_gets_the_usual_tile() -> None:
    model, noisy = FFDNet(8, 3), torch.rand(1, 3, 20, 20)
    assert (tile_for(model, noisy, 64), tile_for(model, noisy, None)) == (64, None)
    del model.bytes_per_pixel
    assert tile_for(model, noisy, "auto") == UNSTATED


def test_a_tile_has_a_floor() -> None:
    model, noisy = FFDNet(8, 3), torch.rand(1, 3, 20, 20)
    assert smallest_tile(model) == 14 >= model.receptive_field
    assert [tile_for(model, noisy, side) for side in (1, 3, 13, 14, 15)] == [14, 14, 14, 14, 15]
    with pytest.raises(ValueError, match="tile=0: needs a side in pixels, None for whole images, or auto"):
        tile_for(model, noisy, 0)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(50, 71, 3), (50, 71)])
def test_integers_are_restored_as_their_floating_point_image(kind: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = stirred(FFDNet(8, 3)).eval()
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, shape, dtype=kind)
    whole = restore_pixels(model, image, 25.0, tile=None)
    assert whole.dtype == kind and whole.shape == shape
    np.testing.assert_array_equal(whole, pixels(restore(model, tensor(image), 25.0), like=image))
    steps: list[tuple[int, int]] = []
    tiled = restore_pixels(model, image, 25.0, tile=16, progress=lambda *step: steps.append(step))
    assert np.abs(tiled.astype(int) - whole).max() <= 1 and steps == [(number, 20) for number in range(1, 21)]
    noisy = tensor(image) + 0.1
    given = restore_pixels(model, image, 25.0, tile=16, noisy=noisy)
    assert np.abs(given.astype(int) - pixels(restore(model, noisy, 25.0), like=image)).max() <= 1
