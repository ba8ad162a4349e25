"""Each degradation against a slow and obvious form of itself, or against the library that is known for it."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from d2sm import blur, haze, noise
from d2sm.degradations import DEGRADATIONS

HEIGHT, WIDTH = 37, 50
CPU = torch.device("cpu")


def image(seed: int = 0, side: int = 1) -> Tensor:
    """(1, 3, H, W) in [0, 1]: noise of coarse and of fine grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    large = torch.nn.functional.interpolate(coarse, (HEIGHT * side, WIDTH * side), mode="bilinear")
    return (large + 0.2 * torch.rand(large.shape, generator=generator) - 0.1).clamp(0, 1)


def degraded(name: str, clean: Tensor, level: float, seed: int = 0) -> Tensor:
    return DEGRADATIONS[name].load()(clean, level=torch.tensor([level]), seeds=[seed])


def channels(of: Tensor) -> list[NDArray[np.float64]]:
    return [plane.double().numpy() for plane in of[0]]


def close(found: Tensor, planes: list[NDArray[np.float64]], tolerance: float) -> None:
    np.testing.assert_allclose(np.stack(channels(found)), np.stack(planes), rtol=0, atol=tolerance)


def test_noise_is_that_of_the_paper() -> None:
    clean = image()
    assert torch.equal(degraded("noise", clean, 25, 7), noise.add_noise(clean, sigma=torch.tensor([25.0]), seeds=[7]))


def test_clipped_noise_is_what_an_8_bit_file_holds() -> None:
    clean = image()
    found = degraded("noise_clip", clean, 50, 7)
    pixels = np.clip(np.rint(degraded("noise", clean, 50, 7)[0].permute(1, 2, 0).double().numpy() * 255), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    stored = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(found, stored)
    assert found.min() == 0 and found.max() == 1  # some values were clipped


@pytest.mark.parametrize("electrons", [5.0, 200.0])
def test_sensor_noise_has_the_mean_and_the_variance_of_its_model(electrons: float) -> None:
    """400,000 pixels of each of four greys; means and variances within five standard errors."""
    for grey in (0.0, 0.1, 0.5, 1.0):
        found = degraded("poisson", torch.full((1, 1, 500, 800), grey), electrons, 3).double()
        variance = grey / electrons + (noise.READ_NOISE / electrons) ** 2
        count = found.numel()
        assert abs(found.mean().item() - grey) < 5 * math.sqrt(variance / count)
        fourth = (found - grey).pow(4).mean().item()
        assert abs(found.var().item() - variance) < 5 * math.sqrt((fourth - variance**2) / count)


@pytest.mark.parametrize("quality", [1, 10, 75, 100])
def test_jpeg_is_that_of_pillow(quality: int) -> None:
    clean = image(side=2)
    file = io.BytesIO()
    pixels = (clean[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2)
    stored = Image.open(file)
    assert stored.layer[1][1:3] == (1, 1) and stored.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]
    assert torch.equal(
        degraded("jpeg", clean, quality)[0], torch.from_numpy(np.array(stored)).permute(2, 0, 1).float() / 255
    )


def test_jpeg_of_a_lower_quality_is_worse() -> None:
    clean = image()
    errors = [(degraded("jpeg", clean, quality) - clean).square().mean().item() for quality in (95, 50, 20, 5)]
    assert errors == sorted(errors) and errors[0] < errors[-1] / 4


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7, 2.0, 9.3])
def test_blur_is_the_gaussian_filter_of_scipy(sigma: float) -> None:
    planes = [ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4) for plane in channels(image())]
    close(degraded("blur", image(), sigma), planes, 2e-6)


@pytest.mark.parametrize("length", [0.0, 1.0, 4.5, 15.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_motion_is_the_mean_of_the_shifted_images(length: float, seed: int) -> None:
    angle = blur.angle_of(seed)
    along = np.linspace(-length / 2, length / 2, 4 * math.ceil(length) + 1)
    planes = [
        np.mean(
            [
                ndimage.shift(plane, (step * math.sin(angle), step * math.cos(angle)), order=1, mode="nearest")
                for step in along
            ],
            axis=0,
        )
        for plane in channels(image())
    ]
    close(degraded("motion", image(), length, seed), planes, 2e-6)


def test_motions_have_all_angles() -> None:
    angles = [blur.angle_of(seed) for seed in range(400)]
    assert np.histogram(angles, bins=4, range=(0, math.pi))[0].min() > 70
    kernel = blur.motion_kernel(8, 0.0)
    assert kernel.shape == (9, 9) and kernel.sum().item() == pytest.approx(1)
    assert kernel[4].sum().item() == pytest.approx(1)  # along the columns


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_downsampling_is_the_bicubic_of_pillow(factor: int) -> None:
    small = (round(WIDTH / factor), round(HEIGHT / factor))
    planes = []
    for plane in channels(image()):
        stored = Image.fromarray(plane.astype(np.float32)).resize(small, Image.Resampling.BICUBIC)
        planes.append(np.asarray(stored.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float64))
    close(degraded("downsample", image(), factor), planes, 2e-6)


@pytest.mark.parametrize("density", [0.0, 0.5, 3.0])
def test_haze_is_the_scattering_model_pixel_by_pixel(density: float) -> None:
    clean, view = image(), haze.view_of(5)
    expected = torch.empty(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    for row in range(HEIGHT):
        below = (row + 0.5) / HEIGHT - view.horizon
        depth = 1.0 if below <= 0 else 1 / (1 + view.steepness * below)
        left = math.exp(-density * depth)
        for column in range(WIDTH):
            for channel in range(3):
                seen = clean[0, channel, row, column].item()
                expected[0, channel, row, column] = seen * left + view.airlight * (1 - left)
    close(degraded("haze", clean, density, 5), channels(expected), 1e-6)


def test_haze_grows_to_the_horizon_and_differs_by_seed() -> None:
    depths = haze.depth(100, haze.view_of(0))
    assert depths.max() == 1 and (depths.diff() <= 0).all() and depths[-1] < 0.6
    views = [haze.view_of(seed) for seed in range(200)]
    assert all(0.3 <= v.horizon <= 0.6 and 2 <= v.steepness <= 12 and 0.8 <= v.airlight <= 1 for v in views)
    assert len(set(views)) == 200


@pytest.mark.parametrize("name", ["blur", "motion", "downsample", "haze"])
def test_the_weakest_level_changes_nothing(name: str) -> None:
    clean = image()
    torch.testing.assert_close(degraded(name, clean, DEGRADATIONS[name].low), clean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_stronger_end_is_the_stronger(name: str) -> None:
    entry, clean = DEGRADATIONS[name], image(side=3)
    ends = [max(entry.low, 1.0), min(entry.high, 12.0) if entry.stronger == "higher" else min(entry.high, 1000.0)]
    low, high = ((degraded(name, clean, level) - clean).square().mean().item() for level in ends)
    assert (high > 2 * low) == (entry.stronger == "higher") and (low > 2 * high) == (entry.stronger == "lower")


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_tiny_images_are_degraded_too(name: str) -> None:
    for size in ((1, 1), (2, 7)):
        found = DEGRADATIONS[name].load()(torch.rand(2, 3, *size), level=torch.tensor([4.0, 8.0]), seeds=[1, 2])
        assert found.shape == (2, 3, *size) and found.isfinite().all()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_layout_of_the_images_in_memory_changes_nothing(name: str) -> None:
    clean, level = image(side=2).expand(2, -1, -1, -1), torch.tensor([4.0, 9.0])
    degrade = DEGRADATIONS[name].load()
    found = degrade(clean.contiguous(memory_format=torch.channels_last), level=level, seeds=[1, 2])
    torch.testing.assert_close(found, degrade(clean.contiguous(), level=level, seeds=[1, 2]), rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_gpu_degrades_as_the_cpu_does(name: str) -> None:
    """To the rounding of the arithmetic; noise has another generator there, and the same spread."""
    clean, level, seeds = image(side=4).expand(2, -1, -1, -1), torch.tensor([4.0, 9.0]), [1, 2]
    degrade = DEGRADATIONS[name].load()
    there = degrade(clean.cuda(), level=level, seeds=seeds)
    here = degrade(clean, level=level, seeds=seeds)
    assert there.device.type == "cuda" and torch.equal(degrade(clean.cuda(), level=level.cuda(), seeds=seeds), there)
    if DEGRADATIONS[name].is_noise or name == "poisson":
        spreads = [(noisy.cpu() - clean).std((1, 2, 3)) for noisy in (there, here)]
        torch.testing.assert_close(*spreads, rtol=0.05, atol=0)
    else:
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=2e-5)


class Copies(TorchDispatchMode):
    """Counts the copies from the host to another device for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and options.get("device", CPU) != CPU:
            self.waited += args[0].device == CPU and not options.get("non_blocking")
        return func(*args, **options)


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name != "jpeg"])  # which a codec of the host makes
def test_the_host_waits_for_no_copy(name: str) -> None:
    """The meta device stands for a GPU; it has no random numbers."""
    if DEGRADATIONS[name].is_noise or name == "poisson":
        pytest.skip("draws on the device")
    there = image().repeat(2, 1, 1, 1).to("meta")
    with Copies() as copies:
        DEGRADATIONS[name].load()(there, level=torch.tensor([2.0, 3.0]), seeds=[1, 2])
    assert copies.waited == 0


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_torchs_default_device_changes_nothing(name: str) -> None:
    clean, level = image(), 4.0
    wanted = degraded(name, clean, level)
    levels = torch.tensor([level])
    with torch.device("meta"):
        found = DEGRADATIONS[name].load()(clean, level=levels, seeds=[0])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("of_level", [torch.float32, torch.float64], ids=str)
def test_the_result_has_the_type_of_the_images(name: str, dtype: torch.dtype, of_level: torch.dtype) -> None:
    """Whatever the type of the levels is; and without chance, the values of float32 up to rounding."""
    clean, level = image().repeat(2, 1, 1, 1), {"jpeg": 50.0, "poisson": 100.0}.get(name, 2.0)
    function = DEGRADATIONS[name].load()
    found = function(clean.to(dtype), level=torch.tensor([level, level], dtype=of_level), seeds=[1, 2])
    assert found.dtype == dtype and found.shape == clean.shape and found.isfinite().all()
    if not (DEGRADATIONS[name].is_noise or name == "poisson"):
        wanted = function(clean, level=torch.tensor([level, level]), seeds=[1, 2])
        tolerance = 0.15 if name == "jpeg" else 4 * torch.finfo(dtype).eps + 1e-5
        torch.testing.assert_close(found.float(), wanted, rtol=0, atol=tolerance)
