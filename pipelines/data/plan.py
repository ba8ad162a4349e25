"""The plan of an epoch: for every crop its image, place, flip, levels and seed, drawn from (seed, epoch).

Counter-based generators draw the plan over the items sorted by name, so it depends neither on the workers and ingest
tasks that carry it out nor on where a run was resumed. A step takes `batch_size` consecutive crops. The images are
shuffled, and then the crops of each `shuffle_images` neighbouring images among themselves, so that an ingest task
decodes an image once for all crops that it cuts from it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import Config

SCHEMA = pa.schema(
    [
        ("item", pa.int32()),  # row of the index
        ("left", pa.float64()),  # left edge, in [0, 1): 0 is the image's left edge, 1 where the crop no longer fits
        ("top", pa.float64()),  # likewise
        ("flip", pa.bool_()),  # left to right
        ("sigma", pa.float32()),  # of the noise, in units of 0..255: what a network is told; 0 without noise
        ("seed", pa.int64()),  # of the degradation
    ]
)


LEVEL = "level"  # and its place in the chain: a column for each step of `degrade.chain`, float32


def schema(config: Config) -> pa.Schema:
    """The columns of `epoch_table`: `SCHEMA`, and the level of each step if there is a chain."""
    steps = config.degradation.steps if config.degrade.chain else ()
    return pa.schema([*SCHEMA, *((f"{LEVEL}{place}", pa.float32()) for place in range(len(steps)))])


def steps_per_epoch(config: Config, items: int) -> int:
    """Whole batches in an epoch; which crops are left over differs from epoch to epoch."""
    return items * config.data.crops_per_image // config.train.batch_size


def total_steps(config: Config, items: int) -> int:
    """Steps of the whole run."""
    steps = config.train.epochs * steps_per_epoch(config, items)
    return min(steps, config.train.max_steps or steps)


def steps_per_task(config: Config) -> int:
    """Whole steps that one ingest task prepares: those that the crops of `shuffle_images` images fill."""
    return max(1, config.data.shuffle_images * config.data.crops_per_image // config.train.batch_size)


def epoch_table(config: Config, items: int, epoch: int) -> pa.Table:
    """Draw the plan of an epoch.

    Args:
        items: number of images.
        epoch: from 0.

    Returns:
        A table of `schema(config)` with `items * crops_per_image` rows, one a crop, in the order of training.
    """
    each, seed = config.data.crops_per_image, config.train.seed
    # What is drawn for a crop comes from a generator of its own, so that it does not depend on the order.
    drawn = np.random.Generator(np.random.Philox(key=[seed, 2 * epoch])).random((items * each, 4))
    rng = np.random.Generator(np.random.Philox(key=[seed, 2 * epoch + 1]))
    noise_seeds = np.random.Philox(key=[seed, 2**32 + epoch]).random_raw(items * each) >> np.uint64(1)

    crops = (rng.permutation(items)[:, None] * each + np.arange(each)).reshape(-1)
    together = config.data.shuffle_images * each
    groups = np.split(crops, range(together, items * each, together))
    order = np.concatenate([rng.permutation(group) for group in groups])

    chain = config.degradation
    levels = [step.at(_drawn_of_step(config, epoch, place, drawn)[order]) for place, step in enumerate(chain.steps)]
    sigma = chain.sigmas(np.stack(levels, axis=1))
    columns = [
        (np.arange(items * each) // each)[order].astype(np.int32),
        drawn[order, 0],
        drawn[order, 1],
        (drawn[order, 2] < 0.5) & config.data.flip,
        sigma.astype(np.float32),
        noise_seeds[order].astype(np.int64),
        *(level.astype(np.float32) for level in levels if config.degrade.chain),
    ]
    return pa.table(columns, schema=schema(config))


def _drawn_of_step(config: Config, epoch: int, place: int, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """For every crop a number in [0, 1) from which the level of a step of the chain follows.

    That of the first step is drawn beside the crop's place, so that a chain of noise alone is the noise of the default.
    Each further step has a generator of its own, so that a step that is added changes no other.
    """
    if place == 0:
        return drawn[:, 3]
    key = [config.train.seed, (place + 1) * 2**32 + epoch]
    return np.random.Generator(np.random.Philox(key=key)).random(len(drawn))


def crops_of(table: pa.Table, config: Config, first: int, last: int) -> pa.Table:
    """The rows of `epoch_table` for steps `first` to `last` - 1, counted within the epoch."""
    return table.slice(first * config.train.batch_size, (last - first) * config.train.batch_size)
