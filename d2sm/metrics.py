"""PSNR and SSIM of a restored image, IoU of a segmentation as sums that merge.

The convention, here and nowhere else: scikit-image's PSNR and SSIM on one colour image at a time, in
float64, data range 1, SSIM with a Gaussian window of 11 (sigma 1.5) averaged over pixels and channels. IoU
comes from a confusion matrix summed over all images; ignored pixels count nowhere; the mean is over the
classes that occur in the labels. Nothing is clamped here: who compares images clamps them first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = Tensor | NDArray[np.floating]
    Labels = Tensor | NDArray[np.integer]

CLASSES: tuple[str, ...] = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""The 19 classes Cityscapes evaluates; a train id is an index here."""

COLOURS: NDArray[np.uint8] = np.array(
    [
        [128, 64, 128], [244, 35, 232], [70, 70, 70], [102, 102, 156], [190, 153, 153], [153, 153, 153],
        [250, 170, 30], [220, 220, 0], [107, 142, 35], [152, 251, 152], [70, 130, 180], [220, 20, 60],
        [255, 0, 0], [0, 0, 142], [0, 0, 70], [0, 60, 100], [0, 80, 100], [0, 0, 230], [119, 11, 32],
    ],
    dtype=np.uint8,
)  # fmt: skip
"""(19, 3) uint8 RGB: the colour in which Cityscapes shows each class."""

_WINDOW = 11


def psnr(*, restored: Image, clean: Image) -> float:
    """Peak signal-to-noise ratio of one image in dB; `inf` where the two are identical.

    Args:
        restored: (3, H, W), float, in [0, 1].
        clean: likewise, of the same shape.

    Raises:
        ValueError: on another shape or type.
    """
    from skimage.metrics import peak_signal_noise_ratio

    a, b = _pair(restored, clean)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(b, a, data_range=1.0))  # type: ignore[no-untyped-call]


def ssim(*, restored: Image, clean: Image) -> float:
    """Structural similarity of one image (Wang et al., IEEE TIP 2004), 1 where the two are identical.

    Args:
        restored: (3, H, W), float, in [0, 1], H and W at least 11.
        clean: likewise, of the same shape.

    Raises:
        ValueError: on another shape or type, or an image smaller than the window.
    """
    from skimage.metrics import structural_similarity

    a, b = _pair(restored, clean)
    if min(a.shape[1:]) < _WINDOW:
        raise ValueError(f"ssim: image of {a.shape[1]}x{a.shape[2]}: needs at least {_WINDOW} pixels a side")
    value = structural_similarity(  # type: ignore[no-untyped-call]
        b, a, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
        win_size=_WINDOW, use_sample_covariance=False,
    )  # fmt: skip
    return float(value)


def confusion(prediction: Labels, label: Labels, classes: int = 19, ignore: int = 255) -> Tensor:
    """Count pixels by true and predicted class; matrices of several images add up.

    Args:
        prediction: integer train ids, any shape.
        label: integer train ids of the same shape, `ignore` where there is none.
        classes: number of train ids.
        ignore: the label that is left out.

    Returns:
        int64 (classes, classes), [label, prediction], on the device of `label`.

    Raises:
        ValueError: shapes differ, or an id is out of range (raw label ids, for example).
    """
    label = torch.as_tensor(label).long()
    prediction = torch.as_tensor(prediction).to(label.device).long()
    if prediction.shape != label.shape:
        raise ValueError(
            f"confusion: prediction is {tuple(prediction.shape)} and label {tuple(label.shape)}: must agree"
        )
    counted = label != ignore
    label, prediction = label[counted], prediction[counted]
    for name, ids in (("label", label), ("prediction", prediction)):
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            raise ValueError(
                f"confusion: {name} holds ids from {int(ids.min())} to {int(ids.max())}: "
                f"needs train ids in 0..{classes - 1} (or {ignore}); map label ids to train ids first"
            )
    return torch.bincount(label * classes + prediction, minlength=classes**2).view(classes, classes)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class.

    Args:
        confusion: (classes, classes) counts, [label, prediction].

    Returns:
        float64 (classes,) in [0, 1]; nan for a class that no label holds.
    """
    counts = confusion.double()
    hit, truth = counts.diagonal(), counts.sum(1)
    values = hit / (truth + counts.sum(0) - hit)
    return torch.where(truth > 0, values, torch.nan)


def miou(confusion: Tensor) -> float:
    """Mean IoU in [0, 1] over the classes that occur in the labels; nan where none does."""
    return float(iou(confusion).nanmean())


def _pair(restored: Image, clean: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    arrays = []
    for name, image in (("restored", restored), ("clean", clean)):
        array = image.detach().float().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        if array.dtype.kind != "f":
            raise ValueError(f"{name} holds {array.dtype}: needs floating point in [0, 1]; divide by 255 first")
        if array.ndim != 3 or array.shape[0] != 3:
            raise ValueError(f"{name} has shape {array.shape}: needs one image, (3, H, W)")
        arrays.append(array.astype(np.float64))
    a, b = arrays
    if a.shape != b.shape:
        raise ValueError(f"restored is {a.shape} and clean {b.shape}: must agree")
    return a, b
