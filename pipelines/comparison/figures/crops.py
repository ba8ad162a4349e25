"""The comparison figure: a crop of a photograph, noisy, as each row restores it, and clean.

Below the images stand their segmentations and their errors.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from d2sm import metrics
from pipelines.comparison.figures import style
from pipelines.comparison.photographs import CLEAN, NOISY, ComparedPhotograph, compared_photographs
from pipelines.comparison.rows import Row
from pipelines.inference.samples import tensor
from pipelines.runs.results import level_title

GAIN = 4  # by which errors are amplified: an error of 32 of 255 or more is drawn black or white
_PHOTOGRAPHS, _FIGURES = 12, 3  # photographs that are searched, and those of them that are drawn
_SIDE = 0.4  # of a crop, as a fraction of the photograph's shorter side


@dataclass(frozen=True)
class Crop:
    """A square of a photograph; `difference` says how much the rows differ in it (see `choose`)."""

    photograph: ComparedPhotograph
    top: int
    left: int
    side: int
    difference: float

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop's pixels of an image or class map (H, W, ...)."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def draw(rows: Sequence[Row], folder: Path, *, quiet: bool = False) -> list[Path]:
    """One PNG for each of the three photographs in which the rows differ most; gives their paths."""
    crops = [choose(photograph) for photograph in compared_photographs(rows, count=_PHOTOGRAPHS, quiet=quiet)]
    crops.sort(key=lambda crop: -crop.difference)
    written = []
    for number, crop in enumerate(crops[:_FIGURES], start=1):
        written += style.save(_figure(crop), folder / f"comparison-{number}", vector=False)
    return written


def choose(photograph: ComparedPhotograph) -> Crop:
    """The square in which the rows differ most: chosen by a rule, not by hand, and so not a typical one.

    With a segmenter, the difference is the fraction of pixels to which not all rows give the same class; for a single
    row, those to which it does not give the class of the clean photograph. Without a segmenter, it is the range of the
    rows' absolute errors, in 0..1; for a single row, its absolute error.
    """
    rows = [name for name in photograph.images if name not in (NOISY, CLEAN)]
    if photograph.classes:
        compared = rows if len(rows) > 1 else [*rows, CLEAN]
        classes = np.stack([photograph.classes[name] for name in compared])
        differences = (classes != classes[0]).any(0).astype(np.float32)
    else:
        clean = photograph.images[CLEAN].astype(np.float32)
        errors = np.stack([np.abs(photograph.images[name] - clean).mean(-1) / 255 for name in rows])
        differences = errors.max(0) - errors.min(0) if len(rows) > 1 else errors[0]
    height, width = differences.shape
    side = int(min(height, width) * _SIDE)
    step = max(1, side // 8)
    means = avg_pool2d(torch.from_numpy(differences)[None, None], side, stride=step)[0, 0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return Crop(photograph, top * step, left * step, side, float(means.max()))


def error(image: NDArray[np.uint8], clean: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """GAIN * (image - clean) around grey (128): darker where the image is darker than the clean one."""
    signed = 128 + GAIN * (image.astype(np.int32) - clean)
    return signed.clip(0, 255).astype(np.uint8)


def _figure(crop: Crop) -> Figure:
    """A column a version: its image, its segmentation where there is a segmenter, its error."""
    photograph = crop.photograph
    segmented = bool(photograph.classes)
    columns, lines = len(photograph.images), 3 if segmented else 2
    drawn = style.figure(0.5 + 2.2 * columns, 1.0 + 2.55 * lines + 0.6 * segmented)
    grid = drawn.subplots(lines, columns, squeeze=False)
    clean = crop.of(photograph.images[CLEAN])
    for column, (name, whole) in enumerate(photograph.images.items()):
        image = crop.of(whole)
        heading = "\n".join(textwrap.wrap(f"{name}, {level_title(photograph.level)}" if name == NOISY else name, 18))
        if name != CLEAN:
            heading += f"\n{metrics.psnr(tensor(image)[0], tensor(clean)[0]):.2f} dB"
        _show(grid[0, column], image, heading)
        if segmented:
            classes = crop.of(photograph.classes[name])
            same = (classes == crop.of(photograph.classes[CLEAN])).mean()
            _show(
                grid[1, column], photograph.labels.colours[classes], "" if name == CLEAN else f"{same:.1%} as in clean"
            )
        if name == CLEAN:
            grid[-1, column].axis("off")
        else:
            _show(grid[-1, column], error(image, clean), "")
    sides = ["image", *(["segmentation"] if segmented else []), f"error x {GAIN}"]
    for axes, text in zip(grid[:, 0], sides, strict=True):
        axes.set_ylabel(text, fontsize=style.SIZE)
    if segmented:  # a legend of the classes that fill at least a hundredth of one of the crops
        shares = [
            np.bincount(crop.of(classes).ravel(), minlength=len(photograph.labels.classes)) / crop.side**2
            for classes in photograph.classes.values()
        ]
        shown = np.flatnonzero(np.max(shares, axis=0) >= 0.01)
        handles = [
            Patch(color=photograph.labels.colours[index] / 255, label=photograph.labels.classes[index])
            for index in shown
        ]
        drawn.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6), fontsize=style.SIZE - 1)
    style.caption(drawn, [_caption(crop)], size=style.SIZE - 2)
    return drawn


def _show(axes: Axes, image: NDArray[np.uint8], title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=style.SIZE)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _caption(crop: Crop) -> str:
    photograph = crop.photograph
    place = (
        f"{photograph.name}, {level_title(photograph.level)}. Crop of {crop.side} x {crop.side} pixels with its top "
        f"left corner at row {crop.top}, column {crop.left}, "
    )
    compared = "between settings" if len(photograph.images) > 3 else "from the clean photograph"
    if photograph.classes:
        return (
            f"{place}where the segmentations differ most {compared} ({crop.difference:.0%} of the pixels), so not a "
            "typical crop. dB: PSNR of this crop. %: pixels with the same class as in the clean photograph."
        )
    errors = "the errors differ most between settings" if len(photograph.images) > 3 else "the error is largest"
    return f"{place}where {errors}, so not a typical crop. dB: PSNR of this crop."
