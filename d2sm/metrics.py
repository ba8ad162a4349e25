"""PSNR and SSIM of a restored image, and IoU of a segmentation from confusion matrices that add up.

The convention of every number this project reports is defined here. PSNR and SSIM are those of scikit-image, up to
rounding, on one colour image at a time, in float64, data range 1, SSIM with a Gaussian window of 11 (sigma 1.5)
averaged over pixels and channels. IoU is computed from the confusion matrix summed over all images; ignored pixels do
not count; the mean is over the classes that occur in the labels. Nothing is clamped here: clamp restored images to
[0, 1] first.

Tensors on a GPU are measured there, in float64 too: the work is a few hundred operations a value and bound by memory,
also where float64 is slow. Their PSNR and SSIM differ from the CPU's by the order of summation: by less than 1e-9 dB
and 1e-12.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from d2sm.images import check_range, check_restored_range
from d2sm.label_names import CLASSES as CLASSES
from d2sm.label_names import COLOURS as COLOURS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = Tensor | NDArray[np.floating]
    Labels = Tensor | NDArray[np.integer]

_WINDOW, _SIGMA = 11, 1.5
_BAND = 64  # rows of windows that a CPU computes at once: their maps stay in its cache
_GPU_PIXELS = 2**22  # pixels of one channel that a GPU computes at once: a dozen maps of 32 MiB
_C1, _C2 = 0.01**2, 0.03**2
_GAUSSIAN = [math.exp(-((index - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for index in range(_WINDOW)]
_WEIGHTS = [weight / sum(_GAUSSIAN) for weight in _GAUSSIAN]


def psnr(restored: Image, clean: Image) -> float:
    """Peak signal-to-noise ratio of one image in dB; `inf` if both are identical. Measured on the device of `clean`.

    Args:
        restored, clean: (3, H, W), floating point, in [0, 1].

    Raises:
        ValueError: another shape, type or range (see `_checked`).
    """
    b, a = _checked("clean", clean), _checked("restored", restored)
    _check_shapes(a, b)
    error = float((a.to(b.device) - b).square().mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(restored: Image, clean: Image) -> float:
    """Structural similarity of one image (Wang et al., IEEE TIP 2004), 1 if both are identical.

    Args:
        restored, clean: (3, H, W), floating point, in [0, 1], H and W at least 11.

    Raises:
        ValueError: another shape, type or range, or an image smaller than the window.
    """
    return Similarity(clean)(restored)


class Similarity:
    """`ssim` with one clean image, whose windows are averaged once, for several restored images.

    Equal to scikit-image up to the rounding of float64, and several times faster: it processes bands of rows of one
    channel, whose intermediate maps stay in the CPU's cache, and the window is separable and symmetric.

    Args:
        clean: as in `ssim`; a tensor's device is where restored images are compared with it.
        rows: rows of windows computed at once; None: what suits the device.

    Raises:
        ValueError: another shape, type or range, or an image smaller than the window.
    """

    def __init__(self, clean: Image, *, rows: int | None = None) -> None:
        self.clean = _checked("clean", clean)
        _, height, width = self.clean.shape
        if min(height, width) < _WINDOW:
            raise ValueError(f"ssim: image of {height}x{width}: needs at least {_WINDOW} pixels a side")
        self.rows = rows or (_BAND if self.clean.device.type == "cpu" else max(_BAND, _GPU_PIXELS // width))
        self.windows = [_Windows(band) for band in _bands(self.clean, self.rows)]

    def __call__(self, restored: Image) -> float:
        """As `ssim`."""
        image = _checked("restored", restored)
        _check_shapes(image, self.clean)
        bands = _bands(image.to(self.clean.device), self.rows)
        sums = [windows.similarity(band).sum() for windows, band in zip(self.windows, bands, strict=True)]
        _, height, width = image.shape
        return float(sum(torch.stack(sums).tolist()) / (3 * (height - _WINDOW + 1) * (width - _WINDOW + 1)))


class _Windows:
    """A band of the clean image, with the mean and variance of every window, to which C1 and C2 are already added."""

    def __init__(self, clean: Tensor) -> None:
        self.clean, self.mean = clean, _window_means(clean)
        self.squared = self.mean.square()
        self.variance = _window_means(clean.square()) - self.squared + _C2
        self.squared += _C1

    def similarity(self, restored: Tensor) -> Tensor:
        """SSIM of every window, (h, w) -> (h - 10, w - 10)."""
        mean = _window_means(restored)
        squared, product = mean.square(), mean * self.mean
        variance = _window_means(restored.square()) - squared
        covariance = _window_means(restored * self.clean) - product
        return (2 * product + _C1) * (2 * covariance + _C2) / ((squared + self.squared) * (variance + self.variance))


def _bands(image: Tensor, rows: int) -> list[Tensor]:
    """(3, H, W) -> overlapping bands (h, W) of single channels, which contain every window exactly once."""
    tops = range(0, image.shape[1] - _WINDOW + 1, rows)
    return [channel[top : top + rows + _WINDOW - 1] for channel in image for top in tops]


def _window_means(image: Tensor) -> Tensor:
    """Weighted means of every window, (h, w) -> (h - 10, w - 10)."""
    for axis in (0, 1):
        length, middle = image.shape[axis] - _WINDOW + 1, _WINDOW // 2
        shifted = [image.narrow(axis, offset, length) for offset in range(_WINDOW)]
        image = shifted[middle] * _WEIGHTS[middle]
        for offset in range(middle):
            image.add_(shifted[offset] + shifted[-1 - offset], alpha=_WEIGHTS[offset])
    return image


def confusion(prediction: Labels, label: Labels, classes: int = 19, ignore: int = 255) -> Tensor:
    """Count pixels by true and predicted class. The matrices of several images may be added.

    Args:
        prediction: integer train ids, any shape.
        label: integer train ids of the same shape, `ignore` where there is none.
        classes: number of train ids.
        ignore: label of the pixels that do not count.

    Returns:
        int64 (classes, classes), [label, prediction], on the device of `label`.

    Raises:
        ValueError: shapes differ, ids are no integers, or an id is out of range (raw label ids, for example).
    """
    label, prediction = torch.as_tensor(label), torch.as_tensor(prediction)
    for name, ids in (("label", label), ("prediction", prediction)):
        if ids.is_floating_point() or ids.is_complex():
            raise ValueError(f"confusion: {name} holds {ids.dtype}: needs integer train ids")
    label, prediction = label.long(), prediction.to(label.device).long()
    if prediction.shape != label.shape:
        shapes = f"prediction is {tuple(prediction.shape)} and label {tuple(label.shape)}"
        raise ValueError(f"confusion: {shapes}: must agree")
    counted = label != ignore
    label, prediction = label[counted], prediction[counted]
    for name, ids in (("label", label), ("prediction", prediction)):
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            raise ValueError(
                f"confusion: {name} holds ids from {int(ids.min())} to {int(ids.max())}: "
                f"needs train ids in 0..{classes - 1} (or {ignore}); map label ids to train ids first"
            )
    return torch.bincount(label * classes + prediction, minlength=classes**2).view(classes, classes)


def class_counts(confusion: Tensor) -> Tensor:
    """What the IoU of each class is made of: int64 (3, classes), its pixels segmented right, labelled, and predicted.

    Args:
        confusion: (classes, classes) counts, [label, prediction].
    """
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class.

    Args:
        confusion: (classes, classes) counts, [label, prediction].

    Returns:
        float64 (classes,) in [0, 1]; nan for a class that does not occur in the labels.
    """
    right, labelled, predicted = class_counts(confusion).double()
    return torch.where(labelled > 0, right / (labelled + predicted - right), torch.nan)


def miou(confusion: Tensor) -> float:
    """Mean IoU in [0, 1] over the classes that occur in the labels; nan if none does."""
    return float(iou(confusion).nanmean())


def _checked(name: str, image: Image) -> Tensor:
    """The image in float64, a tensor on its device.

    Raises:
        ValueError: another shape or type, or values that are not in [0, 1]; those of `restored` may stray as a
            network's do, or be NaN.
    """
    given = image if isinstance(image, Tensor) else np.asarray(image)
    if not (given.is_floating_point() if isinstance(given, Tensor) else given.dtype.kind == "f"):
        raise ValueError(f"{name} holds {given.dtype}: needs floating point in [0, 1]; divide by 255 first")
    found = given.detach().double() if isinstance(given, Tensor) else torch.from_numpy(given.astype(np.float64))
    if found.ndim != 3 or found.shape[0] != 3 or not found.numel():
        raise ValueError(f"{name} has shape {tuple(found.shape)}: needs one image, (3, H, W)")
    if name == "restored":
        check_restored_range(found)
    else:
        check_range(name, found)
    return found


def _check_shapes(restored: Image, clean: Image) -> None:
    if restored.shape != clean.shape:
        raise ValueError(f"restored is {tuple(restored.shape)} and clean {tuple(clean.shape)}: must agree")
