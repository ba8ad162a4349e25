"""The same photographs as every row restores them, between the noisy and the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from d2sm.inference import restore
from pipelines.comparison.rows import Row, RunsError, changed
from pipelines.data.splits import evaluation_images
from pipelines.inference import samples
from pipelines.inference.pictures import spread
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs import checkpoint

NOISY, CLEAN = "noisy", "clean"
_ACRONYMS = ("l1", "ssim", "lpips", "d2sm", "kl", "jsd", "gan")


@dataclass(frozen=True)
class Scene:
    """A photograph of the evaluation split at one noise level.

    Attributes:
        name: as the evaluation has it.
        level: of the noise, such as "35", or "pair" for noise that was photographed.
        images: (H, W, 3) in 0..255, clamped: "noisy", each row under its short name, "clean", in this order.
        classes: under the same keys (H, W) train ids, as the segmenter sees them; empty without a segmenter.
    """

    name: str
    level: str
    images: dict[str, NDArray[np.uint8]]
    classes: dict[str, NDArray[np.uint8]]


def scenes(rows: Sequence[Row], *, count: int, segmented: bool = True) -> list[Scene]:
    """Photographs spread over the evaluation split, at its middle noise level, restored by each row's first seed.

    Noise, data and segmenter are those of the evaluation (`runs.gather` has seen that it was the same for all rows);
    where they are is taken from the first row's configuration.

    Args:
        rows: at least one.
        count: at most so many photographs.
        segmented: False leaves the classes out.

    Raises:
        RunsError, DataError, SegmenterError, CheckpointError: one line each.
    """
    if not rows:
        raise RunsError("no runs given; give the folders of finished runs")
    config = rows[0].config
    models = {name: checkpoint.load_model(row.runs[0].checkpoint)[0] for name, row in zip(names(rows), rows)}
    segmenter = None
    if segmented and config.evaluate.segmenter:
        segmenter = segmenters.load(config.evaluate.segmenter, weights=config.evaluate.segmenter_weights)
    items, found = evaluation_images(config), []
    for index in spread(items.num_rows, count):
        item = items.slice(index, 1).to_pylist()[0]
        sample = samples.load(config, item)
        level, sigma, noisy = sample.shown
        parts = {NOISY: noisy}
        for name, model in models.items():
            parts[name] = restore(model, noisy, sigma, tile=tile_for(model, noisy, config.evaluate.tile))
        found.append(_scene(item["name"], level, {**parts, CLEAN: sample.clean}, segmenter))
    return found


def names(rows: Sequence[Row]) -> list[str]:
    """Short names of the rows, each another: of their labels, what tells them apart.

    The recipe goes without a backbone and a `_cpu` that all have, and is left out where all have the same and something
    else tells them apart. Of the changed keys the last word stays, and those that are alike in all rows do not.
    """
    words = _words([row.config.recipe for row in rows], {row.config.model.name for row in rows})
    keys = [_telling(row, rows) for row in rows]
    if len(set(words)) == 1 and all(keys):
        words = [""] * len(rows)
    return [" ".join([word, *shown]).strip() for word, shown in zip(words, keys)]


def _words(recipes: list[str], backbones: set[str]) -> list[str]:
    if all(name.endswith("_cpu") for name in recipes):
        recipes = [name.removesuffix("_cpu") for name in recipes]
    if len(backbones) == 1:
        recipes = [name.removeprefix(f"{next(iter(backbones))}_") for name in recipes]
    split = [(name or "run").split("_") for name in recipes]
    return [" ".join(part.upper() if part in _ACRONYMS else part for part in parts) for parts in split]


def _telling(row: Row, rows: Sequence[Row]) -> list[str]:
    """key=value for the keys changed in a row of this recipe that are not alike in all rows."""
    kin = [other.config for other in rows if other.config.recipe == row.config.recipe]
    keys = dict.fromkeys(key for config in kin for key in changed(config))
    flat: list[dict[str, Any]] = [other.config.flat() for other in rows]
    telling = [key for key in keys if any(values[key] != flat[0][key] for values in flat)]
    own = row.config.flat()
    return [f"{key.rpartition('.')[2]}={_short(own[key])}" for key in telling]


def _short(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _scene(name: str, level: str, parts: dict[str, Tensor], segmenter: nn.Module | None) -> Scene:
    classes = {}
    if segmenter is not None:
        classes = {key: segmenters.classes(segmenter, p.clamp(0, 1))[0].byte().numpy() for key, p in parts.items()}
    return Scene(name, level, {key: samples.pixels(part) for key, part in parts.items()}, classes)
