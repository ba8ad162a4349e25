"""Any network as a Denoiser: what it does not state is found out, and agrees with restoring in tiles."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from d2sm.inference import restore
from d2sm.models import CBDNet, FFDNet, WrappedNetwork
from d2sm.tiles import largest_tile
from tests.foreign.tiny_network import Halved, Nested, Three, Tied, TinyNetwork, Weightless, Whole, blind


class Silent(nn.Module):
    """A network of ours that states nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Told(Silent):
    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        restored: Tensor = self.network(noisy, sigma)
        return restored


class Blind(Silent):
    def forward(self, noisy: Tensor) -> Tensor:
        restored: Tensor = self.network(noisy)
        return restored


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_whether_it_is_told_sigma_follows_from_its_arguments() -> None:
    class Named(TinyNetwork):
        def forward(self, noisy: Tensor, sigma: Tensor | None = None) -> Tensor:
            return noisy

    class Other(TinyNetwork):
        def forward(self, noisy: Tensor, features: bool = False) -> Tensor:  # type: ignore[override]
            return noisy

    assert [WrappedNetwork(network).blind for network in (TinyNetwork(), blind(), Named(), Other())] == [
        False, True, False, True,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"noisy, sigma, mask.*needs \(noisy\) or \(noisy, sigma\)"):
        WrappedNetwork(Three())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_measured_does_not_depend_on_who_asks(mode: type[torch.no_grad]) -> None:
    """`restore` with a tile is the first to ask, and it computes no gradients; what it learns is kept."""
    torch.manual_seed(0)
    wrapped, asked = (WrappedNetwork(blind()) for _ in range(2))
    noisy = torch.rand(1, 3, 40, 40)
    with mode():
        restored = restore(wrapped, noisy, tile=16)
        measured = wrapped.receptive_field, wrapped.stride, wrapped.bytes_per_pixel
    assert measured == (asked.receptive_field, asked.stride, asked.bytes_per_pixel)
    assert None not in measured
    torch.testing.assert_close(restored, restore(wrapped, noisy), rtol=0, atol=1e-6)


def test_it_restores_any_size_and_is_told_each_images_level() -> None:
    network = TinyNetwork()
    wrapped = WrappedNetwork(network)
    assert wrapped.multiple == 2 and wrapped.label == "TinyNetwork"
    noisy = torch.rand(2, 3, 33, 47)
    restored = wrapped(noisy, torch.tensor([10.0, 40.0]))
    assert restored.shape == noisy.shape
    even = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(wrapped(even, 20.0), network(even, torch.full((2,), 20.0)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="TinyNetwork: sigma is missing"):
        wrapped(noisy)
    with pytest.raises(ValueError, match=r"TinyNetwork: noisy has shape \(3, 33, 47\)"):
        wrapped(noisy[0])


@pytest.mark.parametrize(
    "network, message",
    [(Halved(), r"gives \(1, 3, 16, 20\) for an image of 33x41"), (Weightless(), "no parameters")],
)
def test_a_network_that_cannot_be_wrapped(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WrappedNetwork(network)


@pytest.mark.parametrize("network, truth", [
    (Told(FFDNet(width=8, depth=4)), FFDNet(width=8, depth=4)),
    pytest.param(Blind(CBDNet()), CBDNet(), marks=pytest.mark.slow),
])  # fmt: skip
def test_what_is_measured_is_not_less_than_what_is_known(network: nn.Module, truth: FFDNet | CBDNet) -> None:
    wrapped = WrappedNetwork(network)
    assert truth.receptive_field <= wrapped.receptive_field <= truth.receptive_field + 2 * truth.stride  # type: ignore[operator]
    assert wrapped.stride == truth.stride
    assert truth.bytes_per_pixel <= (wrapped.bytes_per_pixel or 0) <= 4 * truth.bytes_per_pixel


@pytest.mark.parametrize("network", [TinyNetwork(), blind(), Tied()], ids=lambda network: type(network).__name__)
def test_tiles_give_the_result_of_the_whole_image(network: nn.Module) -> None:
    wrapped = WrappedNetwork(network)
    noisy = torch.rand(1, 3, 57, 71)
    assert wrapped.receptive_field is not None
    tiled = restore(wrapped, noisy, 25.0, tile=wrapped.receptive_field)
    torch.testing.assert_close(tiled, restore(wrapped, noisy, 25.0), rtol=0, atol=1e-6)
    assert largest_tile(
        1000, 1000, free=10**6, bytes_per_pixel=wrapped.bytes_per_pixel or 0, halo=wrapped.receptive_field,
        stride=wrapped.stride,
    )  # fmt: skip


class Ranged(nn.Module):
    """Normalises by the extremes of the whole image, which get a gradient or none."""

    def __init__(self, graph: bool) -> None:
        super().__init__()
        self.graph, self.layer = graph, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.graph and torch.is_grad_enabled()):
            low, high = noisy.amin((1, 2, 3), keepdim=True), noisy.amax((1, 2, 3), keepdim=True)
        normal = (noisy - low) / (high - low)
        restored: Tensor = noisy + self.layer(normal).relu()
        return restored


@pytest.mark.parametrize("graph", [False, True])
def test_a_network_that_looks_at_the_extremes_of_the_image_has_no_tiles(graph: bool) -> None:
    assert WrappedNetwork(Ranged(graph)).receptive_field is None


def test_a_network_over_the_whole_image_has_no_tiles() -> None:
    wrapped = WrappedNetwork(Whole())
    assert wrapped.receptive_field is None and wrapped.stride == 1
    with pytest.raises(ValueError, match="receptive_field is None"):
        restore(wrapped, torch.rand(1, 3, 64, 64), tile=32)


def test_what_the_network_states_is_believed() -> None:
    network = TinyNetwork()
    network.receptive_field, network.stride, network.bytes_per_pixel = 30, 4, 999  # type: ignore[assignment]
    wrapped = WrappedNetwork(network)
    assert (wrapped.receptive_field, wrapped.stride, wrapped.bytes_per_pixel, wrapped.multiple) == (30, 4, 999, 4)


def test_measuring_changes_nothing() -> None:
    network = TinyNetwork().train()
    before, state = torch.get_rng_state(), copy.deepcopy(network.state_dict())
    wrapped = WrappedNetwork(network)
    assert wrapped.receptive_field and wrapped.bytes_per_pixel
    assert torch.equal(torch.get_rng_state(), before) and network.training
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_a_part_called_network_keeps_its_weights() -> None:
    network, other = Nested(), WrappedNetwork(Nested())
    state = WrappedNetwork(network).state_dict()
    assert list(state) == list(network.state_dict())
    in_files = dict(sorted(state.items()))  # as safetensors gives them
    for loaded in (state, in_files, network.state_dict()):
        nn.init.zeros_(other.network.last.weight)  # type: ignore[union-attr, arg-type]
        other.load_state_dict(loaded)
        for name, tensor in other.network.state_dict().items():
            assert torch.equal(tensor, network.state_dict()[name]), name


def test_weights_have_the_names_of_the_network_itself() -> None:
    network = TinyNetwork()
    wrapped = WrappedNetwork(network)
    assert list(wrapped.state_dict()) == list(network.state_dict())
    other = WrappedNetwork(TinyNetwork())
    other.load_state_dict(network.state_dict())
    outer = nn.ModuleDict({"module": wrapped})
    assert set(outer.state_dict()) == {f"module.{name}" for name in network.state_dict()}
    again = nn.ModuleDict({"module": WrappedNetwork(TinyNetwork())})
    again.load_state_dict(outer.state_dict())
    for copied in (other, again["module"], copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert list(copied.state_dict()) == list(network.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(copied.state_dict().values(), network.state_dict().values()))
    with pytest.raises(RuntimeError, match="middle.weight"):
        other.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if "middle" not in name})
    twin = copy.deepcopy(wrapped)
    twin.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()})
    assert not twin.network.down.weight.any() and network.down.weight.any()  # type: ignore[union-attr, operator]


def test_it_keeps_the_order_in_memory_that_its_views_need() -> None:
    wrapped = WrappedNetwork(TinyNetwork()).to(memory_format=torch.channels_last)
    noisy = torch.rand(1, 3, 32, 48).to(memory_format=torch.channels_last)
    assert wrapped(noisy, 25.0).isfinite().all()


@pytest.mark.parametrize("network", [TinyNetwork(), blind()])
def test_a_network_in_half_precision(network: nn.Module) -> None:
    wrapped, noisy = WrappedNetwork(network.bfloat16()), torch.rand(1, 3, 33, 47)
    assert wrapped.multiple == (2 if isinstance(network, TinyNetwork) else 1)
    restored = restore(wrapped, noisy.bfloat16(), 25.0, tile=16)
    assert restored.dtype == torch.bfloat16 and restored.shape == noisy.shape


def test_torchs_default_device_changes_nothing() -> None:
    wanted = WrappedNetwork(blind())
    with torch.device("meta"):
        there = WrappedNetwork(wanted.network)
        found = there.multiple, there.receptive_field, there.stride
    assert None not in found and found == (wanted.multiple, wanted.receptive_field, wanted.stride)
