"""The comparison picture: one crop as noisy, as each row restores it, and clean, with segmentation and differences."""

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
from d2sm.metrics import CLASSES, COLOURS
from pipelines.comparison.figures import style
from pipelines.comparison.figures.scene import CLEAN, NOISY, Scene, scenes
from pipelines.comparison.rows import Row
from pipelines.inference.samples import tensor

GAIN = 4  # of the differences: a pixel that is off by 32 of 255 is as far from grey as can be
_SCENES, _PICTURES = 12, 3
_SHARE = 0.4  # of a photograph's shorter side: the side of a crop


@dataclass(frozen=True)
class Crop:
    """A square of a scene, and how much the rows differ in it (see `choose`)."""

    scene: Scene
    top: int
    left: int
    side: int
    difference: float

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Its part of an image (H, W, ...)."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """One PNG for each of the three photographs in which the rows differ most."""
    found = sorted((choose(scene) for scene in scenes(rows, count=_SCENES)), key=lambda crop: -crop.difference)
    written = []
    for number, crop in enumerate(found[:_PICTURES], start=1):
        written += style.save(_picture(crop), folder / f"comparison-{number}", vector=False)
    return written


def choose(scene: Scene) -> Crop:
    """The square in which the rows differ most: by rule and not by hand, and so no typical one.

    With a segmenter, by the share of pixels to which not all rows give the same class (a single row: not that of the
    clean photograph); without one, by how far apart the rows' errors are (a single row: by its error), in 0..1.
    """
    height, width = scene.images[CLEAN].shape[:2]
    side = int(min(height, width) * _SHARE)
    step = max(1, side // 8)
    means = avg_pool2d(torch.from_numpy(_differences(scene))[None, None], side, stride=step)[0, 0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return Crop(scene, top * step, left * step, side, float(means.max()))


def _differences(scene: Scene) -> NDArray[np.float32]:
    """(H, W), larger where the rows differ more."""
    rows = [name for name in scene.images if name not in (NOISY, CLEAN)]
    if scene.classes:
        classes = np.stack([scene.classes[name] for name in (rows if len(rows) > 1 else [*rows, CLEAN])])
        return (classes != classes[0]).any(0).astype(np.float32)
    clean = scene.images[CLEAN].astype(np.float32)
    errors = np.stack([np.abs(scene.images[name] - clean).mean(-1) / 255 for name in rows])
    return errors.max(0) - errors.min(0) if len(rows) > 1 else errors[0]


def _picture(crop: Crop) -> Figure:
    scene, columns = crop.scene, len(crop.scene.images)
    lines = 3 if scene.classes else 2
    drawn = style.figure(0.5 + 2.2 * columns, 1.0 + 2.55 * lines + 0.6 * bool(scene.classes))
    grid = drawn.subplots(lines, columns, squeeze=False)
    clean = crop.of(scene.images[CLEAN])
    for column, (name, whole) in enumerate(scene.images.items()):
        image = crop.of(whole)
        heading = "\n".join(textwrap.wrap(name, 18))
        _show(grid[0, column], image, heading if name == CLEAN else f"{heading}\n{_psnr(image, clean):.2f} dB")
        if scene.classes:
            classes, ideal = crop.of(scene.classes[name]), crop.of(scene.classes[CLEAN])
            _show(
                grid[1, column], COLOURS[classes], "" if name == CLEAN else f"{(classes == ideal).mean():.1%} as clean"
            )
        if name == CLEAN:
            grid[-1, column].axis("off")
        else:
            _show(grid[-1, column], difference(image, clean), "")
    sides = ["image", "segmentation", f"minus clean, x{GAIN}"] if scene.classes else ["image", f"minus clean, x{GAIN}"]
    for axes, text in zip(grid[:, 0], sides):
        axes.set_ylabel(text, fontsize=style.SIZE)
    if scene.classes:
        _legend(drawn, [crop.of(scene.classes[name]) for name in scene.images])
    drawn.supxlabel("\n".join(textwrap.wrap(_caption(crop), 24 * columns)), fontsize=style.SIZE - 2)
    return drawn


def difference(image: NDArray[np.uint8], clean: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """image - clean times GAIN, around grey; darker where the image is darker."""
    signed = 128 + GAIN * (image.astype(np.int32) - clean)
    return signed.clip(0, 255).astype(np.uint8)


def _psnr(image: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    return metrics.psnr(restored=tensor(image)[0], clean=tensor(clean)[0])


def _show(axes: Axes, image: NDArray[np.uint8], title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=style.SIZE)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _legend(drawn: Figure, classes: Sequence[NDArray[np.uint8]]) -> None:
    """The classes that fill at least a hundredth of one of the crops."""
    counts = np.stack([np.bincount(part.ravel(), minlength=len(CLASSES)) / part.size for part in classes]).max(0)
    handles = [Patch(color=COLOURS[at] / 255, label=CLASSES[at]) for at in np.flatnonzero(counts >= 0.01)]
    drawn.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6), fontsize=style.SIZE - 1)


def _caption(crop: Crop) -> str:
    scene = crop.scene
    level = "photographed noise" if scene.level == "pair" else f"sigma {scene.level}"
    place = f"{scene.name}, {level}, {crop.side} pixels from row {crop.top}, column {crop.left}: "
    if scene.classes:
        return (
            f"{place}where the rows' segmentations differ most ({crop.difference:.0%} of the pixels), so no typical "
            "crop. Under the names PSNR here; over the segmentations the pixels classed as on the clean photograph."
        )
    return f"{place}where the rows' errors differ most, so no typical crop. Under the names PSNR here."
