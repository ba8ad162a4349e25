"""Restoring in tiles gives what restoring whole gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from d2sm.inference import restore
from d2sm.models import FFDNet
from tests.helpers.networks import stirred


class Blind(nn.Module):
    """A blind denoiser of stride 4 that zero-pads its border; it counts the pixels it was shown."""

    blind = True
    stride = 4
    receptive_field = 12

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(48, 48, 3, padding=1)
        self.seen: list[tuple[int, int]] = []

    def forward(self, noisy: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        self.seen.append((height, width))
        padded = nn.functional.pad(noisy, (0, -width % 4, 0, -height % 4), mode="replicate")
        out = nn.functional.pixel_shuffle(self.conv(nn.functional.pixel_unshuffle(padded, 4)), 4)
        return out[..., :height, :width]


@pytest.fixture
def model() -> FFDNet:
    torch.manual_seed(0)
    return stirred(FFDNet(width=8, depth=4))


SIZES = [(64, 64), (61, 97), (97, 60), (31, 33), (5, 3), (1, 70)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [15, 32, 200])
def test_tiled_equals_whole(model: FFDNet, size: tuple[int, int], tile: int) -> None:
    noisy = torch.rand(2, 3, *size)
    sigma = torch.tensor([15.0, 50.0])
    whole = restore(model, noisy, sigma)
    assert whole.shape == noisy.shape
    torch.testing.assert_close(restore(model, noisy, sigma, tile=tile), whole, rtol=0, atol=1e-6)


def test_tiled_equals_whole_at_the_published_size() -> None:
    # Rounding is relative to the output, which an untrained network leaves anywhere within +-3.
    torch.manual_seed(1)
    model, noisy = stirred(FFDNet()), torch.rand(1, 3, 81, 107)
    whole = restore(model, noisy, 25.0)
    tiled = restore(model, noisy, 25.0, tile=32)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-6 * float(whole.abs().max()))


def test_tiled_equals_whole_but_for_rounding(model: FFDNet) -> None:
    # In float64 nothing but the order of sums may differ.
    model, noisy = model.double(), torch.rand(1, 3, 61, 97, dtype=torch.float64)
    tiled = restore(model, noisy, 25.0, tile=14)
    torch.testing.assert_close(tiled, restore(model, noisy, 25.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_blind_model_of_another_stride(size: tuple[int, int]) -> None:
    model, noisy = Blind(), torch.rand(1, 3, *size)
    whole = restore(model, noisy)
    torch.testing.assert_close(restore(model, noisy, tile=13), whole, rtol=0, atol=1e-6)


def test_a_blind_model_is_not_given_sigma() -> None:
    model, noisy = Blind(), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(restore(model, noisy, 25.0), restore(model, noisy))


def test_the_network_never_sees_more_than_tile_and_halo() -> None:
    model = Blind()
    restore(model, torch.rand(1, 3, 150, 210), tile=16, halo=12)
    assert max(model.seen) == (40, 40)
    assert len(model.seen) == 10 * 14


def test_a_halo_below_what_a_pixel_depends_on_would_show(model: FFDNet) -> None:
    # The reason for the check: a margin of a quarter of the receptive field changes the result.
    noisy = torch.rand(1, 3, 64, 64)
    whole = restore(model, noisy, 25.0)
    model.receptive_field //= 4
    assert (restore(model, noisy, 25.0, tile=16) - whole).abs().max() > 1e-4


def test_sigma_as_a_number_is_sigma_for_every_image(model: FFDNet) -> None:
    noisy = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(restore(model, noisy, 25), restore(model, noisy, torch.full((2,), 25.0)))


def test_no_gradient_and_no_clamp(model: FFDNet) -> None:
    restored = restore(model, torch.rand(1, 3, 16, 16) * 20, 25.0)
    assert not restored.requires_grad
    assert restored.max() > 1 and restored.min() < 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": None}, "sigma"),
        ({"sigma": -1.0}, r"sigma=\[-1.0\].*0..255"),
        ({"sigma": float("nan")}, r"sigma=\[nan\].*0..255"),
        ({"sigma": torch.ones(3)}, r"sigma .*\(3,\).*\(1,\)"),
        ({"sigma": 25.0, "tile": 0}, "tile=0"),
        ({"sigma": 25.0, "tile": 32, "halo": 17}, "halo=17.* 18 "),
        ({"sigma": 25.0, "halo": 18}, "halo=18.*tile"),
    ],
)
def test_wrong_arguments_are_named(model: FFDNet, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restore(model, torch.rand(1, 3, 16, 16), **arguments)  # type: ignore[arg-type]


def test_a_model_that_does_not_state_its_reach_is_refused_in_tiles(model: FFDNet) -> None:
    model.receptive_field = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="receptive_field .*None"):
        restore(model, torch.rand(1, 3, 16, 16), 25.0, tile=8)


def test_wrong_shape_is_named(model: FFDNet) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\)"):
        restore(model, torch.rand(3, 16, 16), 25.0)


def test_a_model_in_training_mode_restores_in_eval_mode_and_keeps_its_mode() -> None:
    class Normalised(Blind):
        stride = receptive_field = 1

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.frozen = nn.BatchNorm2d(3).eval()

        def forward(self, noisy: Tensor) -> Tensor:
            return self.frozen(self.norm(noisy))

    model = Normalised()
    noisy = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(restore(model, noisy, tile=8), restore(model, noisy), rtol=0, atol=1e-6)
    assert int(model.norm.num_batches_tracked) == 0
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (nn.Conv2d(3, 3, 3, padding=1), r"Conv2d does not state .*WrappedNetwork\(network\)"),
        (nn.DataParallel(Blind()), r"DataParallel does not state .*\.module"),
    ],
)
def test_a_network_that_is_no_denoiser_is_refused_with_the_remedy(network: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=f"restore: {says}"):
        restore(network, torch.rand(1, 3, 16, 16))


def test_a_network_without_parameters_restores_where_the_image_is() -> None:
    class Mean(nn.Module):
        blind, stride, receptive_field = True, 1, 3

        def forward(self, noisy: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(noisy, 3, 1, 1, count_include_pad=False)

    noisy = torch.rand(1, 3, 20, 24)
    assert torch.equal(restore(Mean(), noisy), Mean()(noisy))
    torch.testing.assert_close(restore(Mean(), noisy, tile=8), Mean()(noisy))


def test_images_of_another_type_than_the_weights_are_named(model: FFDNet) -> None:
    noisy = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"noisy is torch.float32 .* FFDNet are .*noisy.to\(torch.bfloat16"):
        restore(model.bfloat16(), noisy, 25.0)
    assert restore(model, noisy.bfloat16(), 25.0).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="noisy holds torch.uint8.*divide by 255"):
        restore(model, (255 * noisy).byte(), 25.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert restore(model, noisy, 25.0).isfinite().all()
