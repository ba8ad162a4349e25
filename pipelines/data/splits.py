"""The images that training and evaluation read, and what is checked of them before anything is started."""

from __future__ import annotations

import pyarrow as pa

from d2sm.objectives import TERMS
from pipelines.config import Config
from pipelines.data import plan
from pipelines.data.images import DataError
from pipelines.data.index import index
from pipelines.runtime.progress import slow_stage


def training_images(config: Config) -> pa.Table:
    """Index the images that training reads.

    Raises:
        DataError: none, one that cannot be used, one smaller than a crop, fewer crops than a batch, or missing labels.
    """
    with slow_stage(f"looking at the photographs of {config.data.root}"):
        items = index(
            config.data.root,
            config.data.train_split,
            layout=config.data.layout,
            labels="optional" if config.data.layout == "cityscapes" else None,
            on_bad=config.data.bad_images,
        )
    check_sizes(config, items)
    check_labels(config, items)
    return items


def evaluation_images(config: Config) -> pa.Table:
    """Index the images that evaluation reads: the first `evaluate.limit` of its split; with labels for a segmenter.

    Raises:
        DataError: none, one that cannot be used, or one without labels among others that have them.
    """
    labelled = config.evaluate.segmenter and config.data.layout == "cityscapes"
    with slow_stage(f"looking at the photographs of {config.data.root}"):
        items = index(
            config.data.root,
            config.data.val_split,
            layout=config.data.layout,
            labels="optional" if labelled else "ignore",
            on_bad=config.data.bad_images,
        )
    missing = items.filter(items["label"].is_null())["name"]
    if labelled and 0 < len(missing) < items.num_rows:
        raise _no_label(config.data.val_split, missing, "evaluate.segmenter=null")
    return items.slice(0, config.evaluate.limit or items.num_rows)


def check_sizes(config: Config, items: pa.Table) -> None:
    """Check that every image holds a crop, and an epoch a step.

    Raises:
        DataError: names the first image that is too small, or the number of crops.
    """
    size = config.data.crop_size
    for name, height, width in zip(*(items[c].to_pylist() for c in ("name", "height", "width")), strict=True):
        if min(height, width) < size:
            raise DataError(
                f"data.crop_size={size}: {name} has {width}x{height} pixels, smaller than a crop; lower data.crop_size"
            )
    if plan.steps_per_epoch(config, items.num_rows) == 0:
        crops = items.num_rows * config.data.crops_per_image
        raise DataError(
            f"train.batch_size={config.train.batch_size}: larger than the {crops} crops of an epoch "
            f"(data.train_split={config.data.train_split}); lower it, or raise data.crops_per_image"
        )


def check_labels(config: Config, items: pa.Table) -> None:
    """Check that every image has labels if an objective compares with them.

    Raises:
        DataError: names the first image without.
    """
    missing = items.filter(items["label"].is_null())["name"]
    if config.loss.uses_labels and len(missing):
        keys = [f"loss.{TERMS[name].weight_key}=0" for name in config.loss.terms if TERMS[name].uses_labels]
        raise _no_label(config.data.train_split, missing, " ".join(keys))


def _no_label(split: str, missing: pa.ChunkedArray, instead: str) -> DataError:
    return DataError(
        f"{missing[0].as_py()}: one of {len(missing)} images of the split {split!r} without a label in gtFine; unpack "
        f"all labels, or set {instead}"
    )
