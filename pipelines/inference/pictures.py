"""Pictures to look at: noisy | restored | clean, with what the segmenter sees under each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from d2sm import metrics
from d2sm.inference import restore
from pipelines.config import Config
from pipelines.data.images import write_png
from pipelines.data.items import read
from pipelines.data.splits import evaluation_images
from pipelines.inference.samples import noisy_images, tensor
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs import checkpoint

_GAP = 6  # white pixels between the parts


def draw(bundle: Path, config: Config, folder: Path) -> list[Path]:
    """Write `evaluate.pictures` pictures of the evaluation split, at its middle noise level."""
    model = checkpoint.load_model(bundle)[0]
    name = config.evaluate.segmenter
    segmenter = segmenters.load(name, weights=config.evaluate.segmenter_weights) if name else None
    items = evaluation_images(config)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index in spread(items.num_rows, config.evaluate.pictures):
        row = items.slice(index, 1).to_pylist()[0]
        photograph = read(row, labels=False)
        levels = noisy_images(config, row["name"], photograph)
        level, sigma, noisy = levels[len(levels) // 2]
        restored = restore(model, noisy, sigma, tile=tile_for(model, noisy, config.evaluate.tile))
        path = folder / f"{row['name'].replace('/', '-')}_sigma{level}.png"
        write_png(path, grid([noisy, restored, tensor(photograph.clean)], segmenter))
        written.append(path)
    return written


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, evenly from the first to the last of `total`."""
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return list(dict.fromkeys(chosen.tolist()))


def grid(parts: list[Tensor], segmenter: nn.Module | None) -> NDArray[np.uint8]:
    """(1, 3, H, W) images side by side as uint8 (h, w, 3), their segmentation under them."""
    rows = [_beside([pixels(part) for part in parts])]
    if segmenter is not None:
        rows.append(_beside([metrics.COLOURS[segmenters.classes(segmenter, p.clamp(0, 1))[0].numpy()] for p in parts]))
    gap = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate(rows[:1] + [x for row in rows[1:] for x in (gap, row)])


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [0, 1] -> uint8 (H, W, 3), clamped."""
    array: NDArray[np.uint8] = (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return array


def _beside(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((parts[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate(parts[:1] + [x for part in parts[1:] for x in (gap, part)], axis=1)
