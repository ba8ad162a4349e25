"""The images that training and evaluation read, and what is checked of them before anything is started."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import NO_JUDGES, Config
from pipelines.data import plan, shards
from pipelines.data.held_out import TRAIN, VAL
from pipelines.data.images import DataError, ImageError, LabelError, read_labels
from pipelines.data.index import index, layout_of, skipped_images, undivided
from pipelines.recipes import recipes
from pipelines.runtime.progress import slow_stage
from pipelines.text import more

_SAMPLED = 8  # label maps that are read before anything is started


def training_images(config: Config, *, hold_out: bool = True) -> pa.Table:
    """Index the images that training reads.

    Args:
        hold_out: see `index`.

    Raises:
        DataError: none, one that cannot be used, one smaller than a crop, fewer crops than a batch, or missing labels.
    """
    items = index_training(config, hold_out=hold_out)
    for problem in training_problems(config, items):
        raise problem
    return items


def index_training(config: Config, *, hold_out: bool = True) -> pa.Table:
    """The images of the training split, not yet checked against the configuration. Raises DataError."""
    with slow_stage(f"looking at the photographs of {config.data.root}"):
        return index(
            config.data.root,
            config.data.train_split,
            layout=config.data.layout,
            labels="optional" if config.data.layout == "cityscapes" else None,
            on_bad=config.data.bad_images,
            hold_out=hold_out,
            label_set=config.data.labels,
        )


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
            label_set=config.data.labels,
        )
    missing = items.filter(items["label"].is_null())["name"]
    if labelled and 0 < len(missing) < items.num_rows:
        raise _no_label(config.data.val_split, missing, "evaluate.segmenter=null")
    return items.slice(0, config.evaluate.limit or items.num_rows)


def training_problems(config: Config, items: pa.Table) -> Iterator[DataError]:
    """Every reason against training on these images; there may be one of each kind."""
    for check in (check_crops, check_steps, check_labels):
        try:
            check(config, items)
        except DataError as error:
            yield error


def check_sizes(config: Config, items: pa.Table) -> None:
    """Check that every image holds a crop, and an epoch a step.

    Raises:
        DataError: see `check_crops` and `check_steps`.
    """
    check_crops(config, items)
    check_steps(config, items)


def check_crops(config: Config, items: pa.Table) -> None:
    """Check that every image holds a crop.

    Raises:
        DataError: names the first image that is too small.
    """
    size = config.data.crop_size
    small = [(name, height, width) for name, height, width in _sizes(items) if min(height, width) < size]
    if small:
        name, height, width = small[0]
        least = min(min(height, width) for _, height, width in small)
        raise DataError(
            f"data.crop_size={size}: {name} has {width}x{height} pixels{more(small)}, smaller than a crop; lower "
            f"data.crop_size to {least} or less, or remove such images"
        )


def check_steps(config: Config, items: pa.Table) -> None:
    """Check that the crops of an epoch fill a step.

    Raises:
        DataError: names the number of crops.
    """
    if plan.steps_per_epoch(config, items.num_rows):
        return
    crops = items.num_rows * config.data.crops_per_image
    held = _held_out(items)
    note = f", since {held} of {undivided(items)} are held out for evaluation" if held else ""
    raise DataError(
        f"train.batch_size={config.train.batch_size}: larger than the {crops} crops of an epoch: "
        f"data.crops_per_image={config.data.crops_per_image} of each of {items.num_rows} images "
        f"(data.train_split={config.data.train_split}{note}); lower it, or raise data.crops_per_image to "
        f"{-(-config.train.batch_size // items.num_rows)}"
    )


def check_labels(config: Config, items: pa.Table) -> None:
    """Check that every image has labels if an objective compares with them.

    Raises:
        DataError: names the first image without, or a label map with values that are not the label set's.
    """
    missing = items.filter(items["label"].is_null())["name"]
    asking = config.loss.asking_for_labels
    if asking and len(missing):
        off = " ".join(f"{key}={value}" for key, value in asking.items())
        raise _no_label(config.data.train_split, missing, off)
    if asking:
        try:
            for _ in sampled_labels(config, items):
                pass
        except LabelError as error:
            raise DataError(str(error)) from None


def sampled_labels(config: Config, items: pa.Table) -> Iterator[NDArray[np.uint8]]:
    """Some label maps, read before the long work for what shows in their values alone.

    None of a prepared set: it holds train ids, which `d2sm prepare` has read. A map that cannot be read ends them; the
    training or evaluation will stop at it, or leave it out.

    Raises:
        LabelError: a map holds a value that is not the label set's.
    """
    for row in spread(items.num_rows, _SAMPLED):
        where = items["label"][row].as_py()
        if shards.open_stored(where) is not None:
            return
        try:
            labels = read_labels(where, config.data.labels)
        except LabelError:
            raise
        except ImageError:
            return
        yield labels


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, evenly spaced from the first to the last of `total`."""
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return list(dict.fromkeys(chosen.tolist()))


SETTLED = frozenset({"data.layout", "evaluate.segmenter"})
"""The keys that `settled` looks at. Given as `given`, they keep a configuration as it is: it was settled before."""


def settled(config: Config, *, given: Collection[str] = ()) -> tuple[Config, list[str]]:
    """The configuration as this data set needs it, and a line for each thing that was settled by itself.

    Where `data.layout` has its default and only another layout fits, that one is taken. Where there are no labels, a
    segmenter that comes from the recipe, and has no weights, is left out: it would have nothing to be compared with.

    Args:
        given: keys whose values somebody asked for, even if they are the defaults; these are kept.

    Raises:
        ConfigError: another key does not go with the layout that was found.
    """
    said = []
    layout = config.data.layout if "data.layout" in given else layout_of(config.data.root, config.data.layout)
    if layout != config.data.layout:
        said.append(f"data.layout={layout}: found by itself, the one that fits {config.data.root}")
        config = config.replace({"data.layout": layout})
    if config.evaluate.segmenter and layout != "cityscapes" and not segmenter_asked_for(config, given):
        said.append(
            f"evaluate.segmenter={config.evaluate.segmenter}: left out, since there are no labels; PSNR and SSIM are "
            "measured, and no MIoU"
        )
        config = config.replace(NO_JUDGES)
    return config, said


def segmenter_asked_for(config: Config, given: Collection[str]) -> bool:
    """Whether somebody asked for the segmenter of the evaluation: it is not the recipe's, or it has weights."""
    evaluate, of_recipe = config.evaluate, recipes().get(config.recipe, Config()).evaluate
    return (
        "evaluate.segmenter" in given
        or evaluate.segmenter_weights is not None
        or evaluate.segmenter != of_recipe.segmenter
    )


def held_out_line(config: Config, items: pa.Table) -> str | None:
    """What to say where the training images are a part of a data set without splits; None for others."""
    held = _held_out(items)
    if not held:
        return None
    return (
        f"data.root={config.data.root}: has no {TRAIN}/ and {VAL}/, so {held} of its {undivided(items)} "
        f"{_things(items)} are held out of training and used for evaluation"
    )


def evaluated_part_line(config: Config, items: pa.Table) -> str | None:
    """What to say where the images of an evaluation are a part of a data set without splits; None for others."""
    count = undivided(items)
    if count is None:
        return None
    return (
        f"data.root={config.data.root}: has no {TRAIN}/ and {VAL}/, so {items.num_rows} of its {count} "
        f"{_things(items)} are evaluated, those that a training there holds out; data.val_split= (empty) takes all"
    )


def _things(items: pa.Table) -> str:
    """What is counted: several noisy photographs of a clean one are several pairs."""
    return "photographs" if items["noisy"].null_count == items.num_rows else "pairs"


def _held_out(items: pa.Table) -> int:
    """How many photographs were held out of these training images."""
    count = undivided(items)
    return 0 if count is None else count - items.num_rows - len(skipped_images(items))


def _sizes(items: pa.Table) -> Iterator[tuple[str, int, int]]:
    """(name, height, width) of each item."""
    return zip(*(items[column].to_pylist() for column in ("name", "height", "width")), strict=True)


def _no_label(split: str, missing: pa.ChunkedArray, instead: str) -> DataError:
    return DataError(
        f"{missing[0].as_py()}: one of {len(missing)} images of the split {split!r} without a label in gtFine; unpack "
        f"all labels, or set {instead}"
    )
