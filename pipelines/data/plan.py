"""The epoch as a table: from (seed, epoch) follows, for every crop, its image, place, flip, sigma and noise seed.

The table is drawn by counter-based generators over the sorted items, so it depends on neither workers, tasks nor time.
A step's batch is a run of `batch_size` rows; resuming at a step is slicing. Images are shuffled, and the crops of
`shuffle_images` neighbouring images are mixed, so that an ingest task decodes an image once for all its crops.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.config import Config

SCHEMA = pa.schema(
    [
        ("item", pa.int32()),  # row of the table of images
        ("across", pa.float64()),  # left edge, as a share of the room there is: [0, 1)
        ("down", pa.float64()),
        ("flip", pa.bool_()),
        ("sigma", pa.float32()),  # 0..255
        ("seed", pa.int64()),  # of the noise
    ]
)


def steps_per_epoch(config: Config, items: int) -> int:
    """Whole batches in one pass; the crops that are left over differ from epoch to epoch."""
    return items * config.data.crops_per_image // config.train.batch_size


def total_steps(config: Config, items: int) -> int:
    """Steps of the whole run."""
    steps = config.train.epochs * steps_per_epoch(config, items)
    return min(steps, config.train.max_steps or steps)


def steps_per_task(config: Config) -> int:
    """Whole steps that one ingest task prepares: as many as its shuffled images fill."""
    return max(1, config.data.shuffle_images * config.data.crops_per_image // config.train.batch_size)


def epoch_table(config: Config, items: int, epoch: int) -> pa.Table:
    """Every crop of an epoch, in the order of training.

    Args:
        items: number of images.
        epoch: from 0.

    Returns:
        A table of `items * crops_per_image` rows, see `SCHEMA`.
    """
    each = config.data.crops_per_image
    # One generator by item, so that what is drawn for a crop does not depend on the order; one for the order.
    drawn = np.random.Generator(np.random.Philox(key=[config.train.seed, 2 * epoch])).random((items * each, 4))
    order = _order(config, items, np.random.Generator(np.random.Philox(key=[config.train.seed, 2 * epoch + 1])))
    seeds = np.random.Philox(key=[config.train.seed, 2**32 + epoch]).random_raw(items * each) >> np.uint64(1)
    columns = [
        (np.arange(items * each) // each)[order].astype(np.int32),
        drawn[order, 0],
        drawn[order, 1],
        (drawn[order, 2] < 0.5) & config.data.flip,
        _sigma(config, drawn[order, 3]).astype(np.float32),
        seeds[order].astype(np.int64),
    ]
    return pa.table(columns, schema=SCHEMA)


def step_rows(table: pa.Table, config: Config, step: int) -> pa.Table:
    """The rows of a step of the epoch, counted from 0."""
    return table.slice(step * config.train.batch_size, config.train.batch_size)


def _order(config: Config, items: int, rng: np.random.Generator) -> np.ndarray:
    each = config.data.crops_per_image
    crops = rng.permutation(items)[:, None] * each + np.arange(each)
    groups = np.split(
        crops.reshape(-1), range(config.data.shuffle_images * each, items * each, config.data.shuffle_images * each)
    )
    return np.concatenate([rng.permutation(group) for group in groups])


def _sigma(config: Config, drawn: np.ndarray) -> np.ndarray:
    levels = np.asarray(config.noise.sigma)
    if config.noise.draw == "list":
        return levels[(drawn * len(levels)).astype(int)]
    return levels[0] + drawn * (levels[1] - levels[0])
