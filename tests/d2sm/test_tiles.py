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
    with pytest.raises(ValueError, match="stride=0"):
        largest_tile(8, 8, free=1, bytes_per_pixel=1, halo=1, stride=0)
    with pytest.raises(ValueError, match="free=-1"):
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
