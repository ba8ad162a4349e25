"""Pictures of an evaluation: noisy, restored and clean side by side, each with a label, their segmentation below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from d2sm import metrics
from d2sm.inference import restore
from pipelines.config import Config
from pipelines.data import labels as label_sets
from pipelines.data.images import write_png
from pipelines.data.splits import evaluation_images, spread
from pipelines.inference import samples
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs import checkpoint, names
from pipelines.runs.results import is_noise, level_key, level_title

_GAP = 6  # white pixels between two images
_LABEL = 15  # pixels: the size of the labels' font, smaller where the images are narrow
LABELS = _LABEL + 7  # pixels: the height of the line of labels


def draw(bundle: Path, config: Config, folder: Path, segmenter: nn.Module | None) -> list[Path]:
    """Write `evaluate.pictures` pictures of the evaluation split, at its middle level.

    Args:
        bundle: folder of a checkpoint.
        folder: to write to, made if it does not exist.
        segmenter: draws the segmentation; None: there is none.

    Returns:
        The files written, such as NAME_sigma35.png (see `level_key`).

    Raises:
        OSError: a file cannot be written.
    """
    model = checkpoint.load_model(bundle, named=config.model.name)[0]
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    items, colours = evaluation_images(config), label_sets.of(config).colours
    for index in spread(items.num_rows, config.evaluate.pictures):
        sample = samples.usable(config, items.slice(index, 1).to_pylist()[0])
        if sample is None:
            continue
        level, sigma, noisy = sample.shown
        restored = restore(model, noisy, sigma, tile=tile_for(model, noisy, config.evaluate.tile))
        path = _file_for(folder, sample.name, f"_{level_key(level)}.png", taken=written)
        degraded = "noisy" if is_noise(level) else "degraded"
        images = {
            f"{degraded}, {level_title(level)}, {_psnr(noisy, sample.clean)}": noisy,
            f"restored by {model.label}, {_psnr(restored, sample.clean)}": restored,
            "clean": sample.clean,
        }
        write_png(path, labelled(grid(list(images.values()), segmenter, colours), list(images)))
        written.append(path)
    return written


def _file_for(folder: Path, name: str, suffix: str, *, taken: list[Path]) -> Path:
    """The file for the picture of an item: its path below the data set with "-" for "/".

    A digest is added where the file system would not take so long a name, or an item of the same name came before.
    """
    plain = name.replace("/", "-")
    path = folder / names.shortened(plain, suffix, key=name)
    return path if path not in taken else folder / names.shortened(plain, suffix, key=name, always=True)


def grid(
    images: list[Tensor], segmenter: nn.Module | None, colours: NDArray[np.uint8] = metrics.COLOURS
) -> NDArray[np.uint8]:
    """Images (1, 3, H, W) side by side as (h, w, 3) uint8, with a segmenter their segmentation below them.

    Args:
        colours: of the classes.
    """
    lines = [_joined([samples.pixels(image) for image in images], axis=1)]
    if segmenter is not None:
        classes = [segmenters.classes(segmenter, image.clamp(0, 1))[0].numpy() for image in images]
        lines.append(_joined([colours[seen] for seen in classes], axis=1))
    return _joined(lines, axis=0)


def labelled(picture: NDArray[np.uint8], labels: list[str]) -> NDArray[np.uint8]:
    """A picture of `grid` with a line of text above each of its columns, black on white."""
    width = (picture.shape[1] + _GAP) // len(labels)
    font = ImageFont.load_default(_LABEL)
    fits = (width - 2 * _GAP) / max(font.getlength(label) for label in labels)
    if fits < 1:
        font = ImageFont.load_default(max(7.0, _LABEL * fits))  # a smaller one could not be read
    strip = Image.new("RGB", (picture.shape[1], LABELS), "white")
    for column, label in enumerate(labels):
        ImageDraw.Draw(strip).text((column * width + 2, 3), label, fill="black", font=font)
    return np.concatenate([np.asarray(strip), picture])


def _psnr(image: Tensor, clean: Tensor) -> str:
    return f"{metrics.psnr(image[0].clamp(0, 1), clean[0]):.2f} dB"


def _joined(images: list[NDArray[np.uint8]], *, axis: int) -> NDArray[np.uint8]:
    """Join images of one size along an axis, with a white gap between two."""
    shape = list(images[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=axis)
