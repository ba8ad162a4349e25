"""The metrics against slow, obvious computations of the same definitions."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from d2sm.metrics import CLASSES, COLOURS, Similarity, confusion, iou, miou, psnr, ssim


@pytest.fixture
def pair() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    draw = np.random.default_rng(0)
    clean = np.clip(draw.random((3, 1, 1)) + np.linspace(-0.4, 0.4, 21)[:, None] * draw.random(17), 0, 1)
    return np.clip(clean + 0.1 * draw.standard_normal(clean.shape), 0, 1), clean


def slow_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Wang et al. (2004), window by window, over the windows that lie inside the image."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2, values = 0.01**2, 0.03**2, []
    for x, y in zip(a, b, strict=True):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + c1) * (2 * cov + c2)
                values.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim_is_the_definition(pair: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    restored, clean = pair
    assert ssim(restored, clean) == pytest.approx(slow_ssim(restored, clean), abs=1e-9)


@pytest.mark.parametrize("size", [(11, 11), (11, 300), (75, 12), (150, 97)])  # a window, and bands that end anyhow
def test_ssim_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(2)
    clean = draw.random((3, *size))
    similarity = Similarity(clean)
    for spread in (0.0, 0.05, 0.5):
        restored = np.clip(clean + spread * draw.standard_normal(clean.shape), 0, 1)
        wanted = structural_similarity(
            clean, restored, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(restored, clean) == pytest.approx(wanted, abs=1e-12)  # float64, another order of sums
        assert similarity(restored) == ssim(restored, clean)


def test_what_a_gpu_computes_is_the_same_up_to_float64() -> None:
    """Its bands of rows and its sums, on this CPU, against scikit-image."""
    draw = np.random.default_rng(4)
    clean = torch.from_numpy(draw.random((3, 150, 97), np.float32))
    restored = (clean + 0.1 * torch.from_numpy(draw.standard_normal(clean.shape, np.float32))).clamp(0, 1)
    for rows in (1, 64, 4096):
        found = Similarity(clean, rows=rows)(restored)
        assert found == pytest.approx(ssim(restored, clean), abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_as_the_cpu_does() -> None:
    clean = torch.rand(3, 375, 500, generator=torch.Generator().manual_seed(0))
    restored = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert psnr(restored.cuda(), clean.cuda()) == pytest.approx(psnr(restored, clean), abs=1e-9)
    assert ssim(restored.cuda(), clean.cuda()) == pytest.approx(ssim(restored, clean), abs=1e-12)
    label, seen = torch.randint(0, 19, (375, 500)), torch.randint(0, 19, (375, 500))
    assert torch.equal(confusion(seen.cuda(), label.cuda()).cpu(), confusion(seen, label))


def test_psnr_is_the_definition(pair: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    restored, clean = pair
    expected = -10 * math.log10(float(((restored - clean) ** 2).mean()))
    assert psnr(restored, clean) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (11, 300), (375, 500)])
def test_psnr_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(3)
    clean = draw.random((3, *size))
    for spread in (1e-6, 0.05, 0.5):
        restored = np.clip(clean + spread * draw.standard_normal(clean.shape), 0, 1)
        wanted = peak_signal_noise_ratio(clean, restored, data_range=1)
        assert psnr(restored, clean) == pytest.approx(wanted, abs=1e-12)  # float64, another order of sums


def test_psnr_of_a_known_error() -> None:
    assert psnr(restored=np.full((3, 4, 4), 0.6), clean=np.full((3, 4, 4), 0.5)) == pytest.approx(20.0)


def test_identical_images(recwarn: pytest.WarningsRecorder) -> None:
    image = torch.rand(3, 16, 16)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1.0)
    assert not recwarn.list


def test_tensors_and_arrays_agree() -> None:
    a, b = torch.rand(3, 16, 16), torch.rand(3, 16, 16)
    assert psnr(a, b) == psnr(a.numpy(), b.numpy())
    assert ssim(a, b) == ssim(a.numpy(), b.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_precision_of_a_tensor_counts_as_that_of_an_array(dtype: torch.dtype) -> None:
    clean = torch.rand(3, 16, 16, dtype=dtype)
    restored = clean + 1e-9 if dtype == torch.float64 else torch.rand(3, 16, 16).to(dtype)
    assert psnr(restored, clean) == psnr(restored.numpy(), clean.numpy())
    assert ssim(restored, clean) == ssim(restored.numpy(), clean.numpy())
    if dtype == torch.float64:
        assert psnr(restored, clean) == pytest.approx(180, abs=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_images_are_named(metric: object) -> None:
    image = np.zeros((3, 16, 16))
    assert callable(metric)
    for bad, message in (
        (np.zeros((16, 16, 3)), r"restored .*\(16, 16, 3\)"),
        (np.zeros((3, 16, 17)), r"restored .*\(3, 16, 17\).*clean .*\(3, 16, 16\)"),
        (np.zeros((3, 16, 16), np.uint8), "restored .*uint8"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "restored .*uint8"),
        (torch.zeros(3, 16, 16, dtype=torch.bool), "restored .*bool"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(bad, image)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_that_are_not_in_0_to_1_are_refused(metric: Callable[..., float]) -> None:
    clean = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    for restored, reference, says in (
        (255 * clean, 255 * clean + 1, "clean: values from .* to 25"),
        (2 * clean - 1, 2 * clean - 1, "clean: values from -"),
        ((255 * clean).numpy(), clean.numpy(), "restored: values from .* to 25"),
    ):
        with pytest.raises(ValueError, match=says):
            metric(restored, reference)
    assert math.isfinite(metric(clean + 0.5, clean)) and math.isnan(metric(torch.nan * clean, clean))


def test_an_image_smaller_than_the_window_is_named() -> None:
    with pytest.raises(ValueError, match="10x16"):
        ssim(restored=np.zeros((3, 10, 16)), clean=np.zeros((3, 10, 16)))


def test_confusion_counts_pixel_by_pixel() -> None:
    draw = np.random.default_rng(1)
    label = draw.integers(0, 5, (2, 13, 7)).astype(np.uint8)
    prediction = draw.integers(0, 5, (2, 13, 7))
    label[0, :3] = 255
    expected = np.zeros((5, 5), np.int64)
    for t, p in zip(label.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    found = confusion(torch.from_numpy(prediction), label, classes=5)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), expected)


def test_iou_by_sets_and_classes_present() -> None:
    label = np.array([0, 0, 0, 1, 1, 255, 3])
    prediction = np.array([0, 0, 1, 1, 2, 2, 3])
    expected = []
    for c in range(5):
        t = {i for i, v in enumerate(label) if v == c}
        p = {i for i, v in enumerate(prediction) if v == c and label[i] != 255}
        expected.append(len(t & p) / len(t | p) if t else math.nan)  # class 2 is predicted, never true
    matrix = confusion(prediction, label, classes=5)
    np.testing.assert_allclose(iou(matrix).numpy(), expected)
    assert miou(matrix) == pytest.approx((2 / 3 + 1 / 3 + 1) / 3)


def test_matrices_of_several_images_add_up() -> None:
    draw = np.random.default_rng(2)
    label, prediction = draw.integers(0, 19, (4, 9, 9)), draw.integers(0, 19, (4, 9, 9))
    parts = sum((confusion(p, t) for p, t in zip(prediction, label, strict=True)), torch.zeros(19, 19).long())
    assert torch.equal(parts, confusion(prediction, label))


def test_nothing_labelled_gives_nan() -> None:
    assert math.isnan(miou(confusion(np.zeros(4, int), np.full(4, 255))))


def test_raw_label_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction .*float64.*integer"):
        confusion(np.array([0.5, 1.0]), np.array([0, 1]))
    with pytest.raises(ValueError, match="label .*7 .*33"):
        confusion(np.array([0, 0]), np.array([7, 33]))
    with pytest.raises(ValueError, match=r"prediction .*\(3,\).*label .*\(4,\)"):
        confusion(np.zeros(3, int), np.zeros(4, int))


def test_every_class_has_a_name_and_a_colour_of_its_own() -> None:
    assert len(set(CLASSES)) == 19
    assert COLOURS.shape == (19, 3) and COLOURS.dtype == np.uint8
    assert len({tuple(c) for c in COLOURS.tolist()}) == 19


def test_scikit_image_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with the extra `pipelines` alone."""
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    image = torch.rand(3, 16, 16)
    assert psnr(image, image) == math.inf and ssim(image, image) == pytest.approx(1)
