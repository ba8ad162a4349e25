"""Tiles chosen from the memory at hand: the whole image where it fits, else the largest tile, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from d2sm.inference import restore
from d2sm.models import CBDNet, FFDNet, SADNet
from d2sm.tiles import largest_tile
from pipelines.inference import tiling
from pipelines.inference.tiling import SHARE, UNSTATED, tile_for
from pipelines.runtime import memory
from tests.networks import stirred

SIDES = st.integers(1, 5000)


def up(value: int, stride: int) -> int:
    return -(-value // stride) * stride


@given(SIDES, SIDES, st.integers(0, 10**10), st.integers(1, 5000), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]))
def test_whole_where_it_fits_else_the_largest_that_does(
    height: int, width: int, free: int, needs: int, halo: int, stride: int
) -> None:
    def peak(tile: int) -> int:
        side = tile + 2 * up(halo, stride)
        return min(side, height) * min(side, width) * needs

    tile = largest_tile(height, width, free=free, bytes_per_pixel=needs, halo=halo, stride=stride)
    assert (tile is None) == (height * width * needs <= free)
    if tile is not None:
        assert tile % stride == 0 and tile >= halo
        assert peak(tile) <= free or tile == up(halo, stride)  # the least that is worth while
        assert peak(tile + stride) > free or tile >= max(height, width)


@given(SIDES, SIDES, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 5))
def test_more_memory_never_makes_tiles_smaller(height: int, width: int, free: int, more: int, images: int) -> None:
    little, much = (
        largest_tile(height, width, free=f, bytes_per_pixel=300, halo=50, stride=2, images=images)
        for f in (free, free + more)
    )
    assert much is None or (little is not None and little <= much)
    shared = largest_tile(height, width, free=free // images, bytes_per_pixel=300, halo=50, stride=2)
    assert little == shared


def test_what_is_no_size_is_named() -> None:
    with pytest.raises(ValueError, match="largest_tile: stride=0: must be positive"):
        largest_tile(8, 8, free=1, bytes_per_pixel=1, halo=1, stride=0)
    with pytest.raises(ValueError, match="largest_tile: free=-1"):
        largest_tile(8, 8, free=-1, bytes_per_pixel=1, halo=1, stride=1)


NETWORKS = [lambda: FFDNet(8, 3), lambda: FFDNet(32, 8), FFDNet, CBDNet, SADNet]


def most_allocated(model: nn.Module, noisy: Tensor) -> int:
    """Bytes that torch's allocator holds at most while a network restores, copies within its operations included."""
    restore(model, noisy, 25.0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        restore(model, noisy, 25.0)
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("make", NETWORKS)
def test_what_networks_say_they_need_is_what_they_take(make: type[nn.Module]) -> None:
    noisy, measured = torch.rand(1, 3, 128, 128), []
    for order in (torch.contiguous_format, torch.channels_last):
        measured.append(most_allocated(make().eval().to(memory_format=order), noisy) / 128**2)
    assert max(measured) <= make().bytes_per_pixel <= 1.25 * max(measured)


class Counting(FFDNet):
    """An FFDNet that knows the largest window it was shown, in pixels."""

    most = 0

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
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


def test_the_memory_of_this_machine() -> None:
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**50


def group(folder, limit: str, usage: int, cache: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, usage)):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"inactive_file {cache}\ntotal_inactive_file {cache}\n")


def test_the_limit_of_a_control_group(tmp_path) -> None:
    assert memory.group_free(tmp_path, "0::/user/job\n") == []
    group(tmp_path / "user", "max", 900, 0, 2)
    assert memory.group_free(tmp_path, "0::/user/job\n") == []
    group(tmp_path, "1000", 900, 300, 2)  # that of a container, whose own folders it does not see
    group(tmp_path / "user" / "job", "500", 100, 0, 2)
    assert sorted(memory.group_free(tmp_path, "0::/user/job\n")) == [400, 400]
    group(tmp_path / "memory" / "box", "2000", 1990, 5, 1)
    text = "9:name=systemd:/\n4:memory:/box\n3:cpuset,cpu:/\n0::/elsewhere\n"
    assert sorted(memory.group_free(tmp_path, text)) == [15, 400]
    assert memory.group_free(tmp_path, "") == []
