"""Tiles chosen from the free memory: the whole image where it fits, else tiles that give the same result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2sm.inference import restore
from d2sm.models import FFDNet
from pipelines.inference import tiling
from pipelines.inference.tiling import SHARE, UNSTATED, tile_for
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
