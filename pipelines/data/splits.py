"""The photographs that training and evaluation read: the splits of a data set."""

from __future__ import annotations

import pyarrow as pa

from pipelines.config import Config
from pipelines.data import index, plan, stream
from pipelines.data.index import DataError


def evaluation_images(config: Config) -> pa.Table:
    """The table of images that evaluation reads."""
    labelled = config.evaluate.segmenter and config.data.layout == "cityscapes"
    items = index.index(
        config.data.root,
        config.data.val_split,
        layout=config.data.layout,
        labels="optional" if labelled else "ignore",
    )
    missing = items["label"].null_count
    if labelled and 0 < missing < items.num_rows:
        name = next(row["name"] for row in items.to_pylist() if row["label"] is None)
        raise index.DataError(
            f"{name}: one of {missing} images without a label in gtFine; unpack all, or set evaluate.segmenter=null"
        )
    return items.slice(0, config.evaluate.limit or items.num_rows)


def training_images(config: Config) -> pa.Table:
    """The table of images that training reads.

    Raises:
        DataError: when there are none, one is broken, or one holds no crop.
    """
    items = index.index(
        config.data.root,
        config.data.train_split,
        layout=config.data.layout,
        labels="optional" if config.data.layout == "cityscapes" else None,
        on_bad=config.data.bad_images,
    )
    check_sizes(config, items)
    check_labels(config, items)
    return items


def check_sizes(config: Config, items: pa.Table) -> None:
    """Every image must hold a crop, and the split a step.

    Raises:
        DataError: names the first image that is too small, or how many crops there are.
    """
    size = config.data.crop_size
    for name, height, width in zip(*(items[c].to_pylist() for c in ("name", "height", "width")), strict=True):
        if min(height, width) < size:
            raise DataError(f"{name}: {width}x{height} pixels hold no crop of data.crop_size={size}; lower it")
    if plan.steps_per_epoch(config, items.num_rows) == 0:
        crops = items.num_rows * config.data.crops_per_image
        raise DataError(
            f"train.batch_size={config.train.batch_size}: the split has only {crops} crops; lower it, or raise "
            "data.crops_per_image"
        )


def check_labels(config: Config, items: pa.Table) -> None:
    """Every image must have its labels where a term asks for them.

    Raises:
        DataError: names the first image without.
    """
    missing = items.filter(items["label"].is_null())["name"]
    if stream.has_labels(config) and len(missing):
        raise DataError(
            f"{missing[0].as_py()}: one of {len(missing)} images without a label in gtFine; unpack all, or set "
            "loss.cross_entropy=0"
        )
