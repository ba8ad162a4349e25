"""Photographs of the evaluation split: noisy, as each row restores them, and clean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from d2sm.inference import restore
from pipelines.comparison.rows import Row, RunsError, short_names
from pipelines.config import PAIR
from pipelines.data.labels import CITYSCAPES, LabelSet, label_set
from pipelines.data.splits import evaluation_images, spread
from pipelines.inference import samples
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs import checkpoint
from pipelines.runs.trust import check_config
from pipelines.runtime.progress import Line
from pipelines.text import counted, redact
from pipelines.tracking.segmenter import evaluation_segmenter

NOISY, CLEAN = "noisy", "clean"


@dataclass(frozen=True)
class ComparedPhotograph:
    """A photograph at one level, in several versions: "noisy", each row by its short name, "clean".

    Attributes:
        name: as in the evaluation.
        level: of its degradation, as in results: "35", "jpeg10", "pair".
        images: (H, W, 3) uint8, clamped, by version, in the order above.
        classes: (H, W) train ids that the segmenter gives, by version; empty without a segmenter.
        labels: the label set that they are of.
    """

    name: str
    level: str
    images: dict[str, NDArray[np.uint8]]
    classes: dict[str, NDArray[np.uint8]]
    labels: LabelSet = field(default_factory=lambda: label_set(CITYSCAPES))


def compared_photographs(
    rows: Sequence[Row], *, count: int, segmented: bool = True, quiet: bool = True
) -> list[ComparedPhotograph]:
    """Photographs spread over the evaluation split, at its middle level, restored by each row's first seed.

    Noise, photographs and segmenter are those of the evaluation, which is the same for all rows (`rows.read_rows`
    checks it). Their paths are taken from the first row's configuration. What a network is told of the noise of
    photographed pairs is its own row's.

    Args:
        rows: at least one.
        count: at most so many photographs.
        segmented: False leaves the classes out.
        quiet: no progress line.

    Raises:
        RunsError, DataError, SegmenterError, CheckpointError, TrustError: one line each; RunsError too where none of
            the photographs can be read.
    """
    if not rows:
        raise RunsError("no runs given; give the folders of finished runs")
    config = rows[0].config
    names = short_names([row.config for row in rows])
    models = {
        name: checkpoint.load_model(row.runs[0].checkpoint, trust=row.runs[0].trusted)[0]
        for name, row in zip(names, rows, strict=True)
    }
    if segmented:
        check_config(config, rows[0].runs[0].folder, given=None, trust=rows[0].runs[0].trusted)
    segmenter = evaluation_segmenter(config) if segmented else None
    chosen, found = shown_images(rows, count).to_pylist(), []
    with Line(f"restoring by {counted(len(models), 'model')}", len(chosen), quiet=quiet) as line:
        for item in line.over(chosen):
            sample = samples.usable(config, item)
            if sample is None:
                continue
            level, sigma, noisy = sample.shown
            versions = {NOISY: noisy}
            for (name, model), row in zip(models.items(), rows, strict=True):
                told = row.config.noise.sigma[0] if level == PAIR else sigma
                versions[name] = restore(model, noisy, told, tile=tile_for(model, noisy, config.evaluate.tile))
            versions[CLEAN] = sample.clean
            classes = {}
            if segmenter is not None:
                for name, image in versions.items():
                    classes[name] = segmenters.classes(segmenter, image.clamp(0, 1))[0].byte().numpy()
            images = {name: samples.pixels(image) for name, image in versions.items()}
            found.append(ComparedPhotograph(sample.name, level, images, classes, label_set(config.data.labels)))
    if chosen and not found:
        shown = counted(len(chosen), "photograph")
        raise RunsError(
            f"data.root={redact(config.data.root)}: none of the {shown} to be shown can be read; put back those that "
            "were evaluated"
        )
    return found


def shown_images(rows: Sequence[Row], count: int) -> pa.Table:
    """The rows of the index that are photographs of a comparison: at most `count`, spread over the evaluation split.

    Raises:
        DataError: see `splits.evaluation_images`.
    """
    items = evaluation_images(rows[0].config)
    return items.take(spread(items.num_rows, count))
