"""From the plan to the workers: Ray Data decodes images, cuts crops and streams them as uint8; a worker degrades them.

A run is one streaming pass. A row of the stream holds one worker's crops of one step, and the order of the rows is
preserved, so with W workers row k goes to worker k mod W, which checks that it did. An ingest task decodes each of its
images once and cuts all crops of its steps from it; of images in shards it reads only the crops' pixel rows. Either way
the crops are the same.

Crops are degraded in the worker, because uint8 crops are a quarter of the size of noisy float32 ones.

Ingest tasks import this module, so it imports torch only in the functions that workers call: without torch the process
of a task starts sooner and takes less memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from d2sm.chain import Chain
from pipelines.config import Config
from pipelines.data import plan, shards
from pipelines.data.images import DataError, ImageError, Pixels
from pipelines.data.items import open_image
from pipelines.runtime import private

if TYPE_CHECKING:
    import ray.data
    import torch
    from torch import Tensor

WorkerBatch = dict[str, NDArray[Any]]
"""One worker's crops of one step: a row of the stream, by column."""

_MAX_TASKS = 2000  # Ray holds a description of each task; a longer run gives each task several ranges of steps


def stream(config: Config, items: pa.Table, first_step: int = 0, *, workers: int | None = None) -> ray.data.Dataset:
    """The run from `first_step` to its end: the batch of worker 0 for a step, that of worker 1, and so on.

    Columns, for b crops a row: step, rank, count (int64), clean (b, h, w, 3) uint8, noisy likewise (pairs only),
    label (b, h, w) uint8 (only if an objective needs labels), sigma (b,) float32, seed (b,) int64, levels (b, steps)
    float32 (only with degrade.chain), and skipped, a JSON list of [name, why]. b is batch_size / workers, rounded up,
    so that all rows have one shape; the first `count` crops are the worker's own (`trim`), since an elastic number of
    workers does not always divide the batch.

    Args:
        items: index of the training images.
        first_step: from 0.
        workers: number of workers; None: the most that are configured.
    """
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # every row is a block of its own, so that single rows are dealt to the workers
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A task emits its rows at its end. With Ray's buffer of two blocks it then keeps its CPU while they are fetched two
    # by two.
    private.let_blocks_wait(context, plan.steps_per_task(config) * (workers or config.train.workers[1]))
    private.pause_when_idle(context)
    # Off, because any limit would end healthy runs: Ray takes it for a hang that no block has moved for so long, and
    # does not ask who is slow. None moves either while the workers take no row, as in a long validation, or while tasks
    # wait for CPUs that another job has. A worker that waits for long says so (`training.loop.batches`).
    context.execution_no_progress_timeout_s = -1
    context.raise_original_map_exception = True  # Ray would otherwise pass on the text of an error alone
    # Elastic workers take every CPU, and a task that reserves one would wait for ever. So tasks reserve none. A run's
    # own process that trains may have reserved no CPU. In both cases train.data_cpus limits how many tasks run at once.
    resources: dict[str, Any] = {}
    if config.train.elastic or config.train.local:
        resources = {"concurrency": max(1, round(config.train.data_cpus))}
    if config.train.elastic:
        resources["num_cpus"] = 0
    ranges = task_ranges(config, items.num_rows, first_step, plan.total_steps(config, items.num_rows))
    with ray.data.DataContext.current(context):  # a dataset keeps the context that it was created in
        # Not from_arrow: it runs a task to learn the table's size, which waits for ever if workers hold all CPUs.
        source = ray.data.from_items(
            [{"first": first, "last": last} for first, last in ranges],
            override_num_blocks=min(len(ranges), _MAX_TASKS),
        )
        return source.map_batches(
            IngestTask(config, items, workers), batch_size=1, batch_format="numpy", zero_copy_batch=True, **resources
        )


def task_ranges(config: Config, items: int, first_step: int, total: int) -> list[tuple[int, int]]:
    """The steps [first, last) of each ingest task, from `first_step` to `total`; none goes beyond its epoch."""
    an_epoch, a_task = plan.steps_per_epoch(config, items), plan.steps_per_task(config)
    starts = {
        step
        for epoch_start in range(0, total, an_epoch)
        for step in range(epoch_start, min(epoch_start + an_epoch, total), a_task)
    }
    return list(pairwise(sorted({first_step, total, *(step for step in starts if step > first_step)})))


class IngestTask:
    """What an ingest task does: it decodes the images of its steps, cuts their crops and deals them to the workers."""

    def __init__(self, config: Config, items: pa.Table, workers: int | None = None) -> None:
        self.config, self.items, self.workers = config, items, workers or config.train.workers[1]

    def __call__(self, batch: WorkerBatch) -> Iterator[WorkerBatch]:
        """Rows of `stream` for ranges of steps: batch holds the columns first and last."""
        config, workers, size = self.config, self.workers, self.config.train.batch_size
        an_epoch = plan.steps_per_epoch(config, self.items.num_rows)
        for first, last in zip(batch["first"].tolist(), batch["last"].tolist(), strict=True):
            epoch = first // an_epoch
            table = _epoch_table(config, self.items.num_rows, epoch)
            wanted = plan.crops_of(table, config, first - epoch * an_epoch, last - epoch * an_epoch)
            crops, skipped = cut_crops(config, self.items, wanted)
            for step, rank in product(range(first, last), range(workers)):
                start, count = worker_slice(size, rank, workers)
                start += (step - first) * size
                own = slice(start, start + -(-size // workers))
                yield {
                    "step": np.array([step]),
                    "rank": np.array([rank]),
                    "count": np.array([count]),
                    **{name: array[None, own] for name, array in crops.items()},
                    "skipped": np.array([json.dumps(skipped if (step, rank) == (first, 0) else [])]),
                }


@lru_cache(maxsize=2)  # the tasks of a process mostly lie in one epoch
def _epoch_table(config: Config, items: int, epoch: int) -> pa.Table:
    return plan.epoch_table(config, items, epoch)


def worker_slice(batch_size: int, rank: int, workers: int) -> tuple[int, int]:
    """Where a worker's crops of a batch start, and how many they are; the numbers differ by one at most.

    From each start on, the batch holds at least the largest of these numbers.
    """
    start = batch_size * rank // workers
    return start, batch_size * (rank + 1) // workers - start


def cut_crops(config: Config, items: pa.Table, crops: pa.Table) -> tuple[dict[str, NDArray[Any]], list[list[str]]]:
    """Cut some crops of the plan, decoding each of their images once.

    An unreadable image ends the run (data.bad_images=stop), or its crops are cut from the next readable image by name
    (skip); that choice depends on neither the tasks nor the step at which a run was resumed. A damaged shard always
    ends the run, because `d2sm prepare` can mend it.

    Args:
        items: index of the training images.
        crops: rows of `plan.epoch_table`.

    Returns:
        Columns clean (with noisy for pairs, with label if needed), sigma, seed and levels (see `stream`); and [name,
        why] of the skipped.

    Raises:
        ImageError, DataError: an image that cannot be read.
    """
    size = config.data.crop_size
    has_noisy = items["noisy"].null_count < items.num_rows
    # Labels only if an objective needs them, because decoding them takes time.
    wanted: dict[shards.Column, bool] = {"image": True, "noisy": has_noisy, "label": config.loss.uses_labels}
    columns = [column for column, there in wanted.items() if there]
    rows = crops.to_pylist()
    cut: dict[str, Pixels] = {
        column: np.empty((len(rows), size, size, *[3] * (column != "label")), np.uint8) for column in columns
    }
    rows_of_item: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        rows_of_item.setdefault(row["item"], []).append(number)
    skipped: list[list[str]] = []
    for item, numbers in rows_of_item.items():
        images, bad = _open_images(config, items, item, columns)
        skipped += bad
        for number, (column, image) in product(numbers, images.items()):
            row, (height, width) = rows[number], image.shape[:2]
            top, left = int(row["top"] * (height - size + 1)), int(row["left"] * (width - size + 1))
            crop = image[top : top + size, left : left + size]
            cut[column][number] = crop[:, ::-1] if row["flip"] else crop
    drawn = {"sigma": crops["sigma"].to_numpy(), "seed": crops["seed"].to_numpy()}
    if levels := [crops[name].to_numpy() for name in crops.column_names if name.startswith(plan.LEVEL)]:
        drawn["levels"] = np.stack(levels, axis=1)
    return {"clean": cut.pop("image"), **drawn, **cut}, skipped


def _open_images(
    config: Config, items: pa.Table, item: int, columns: list[shards.Column]
) -> tuple[dict[shards.Column, Pixels | shards.StoredImage], list[list[str]]]:
    """The images of an item, or with data.bad_images=skip of the next that can be read; and what was skipped."""
    skipped: list[list[str]] = []
    for number in (*range(item, items.num_rows), *range(item)):
        row = items.slice(number, 1).to_pylist()[0]
        try:
            return {column: open_image(row, column, config.data.labels) for column in columns}, skipped
        except ImageError as error:
            if config.data.bad_images == "stop":
                raise
            skipped.append([row["name"], str(error)])
    raise DataError(f"{skipped[0][0]}: none of {items.num_rows} images can be read: {skipped[0][1]}")


def trim(batch: WorkerBatch) -> WorkerBatch:
    """Drop the crops that belong to the next worker, and the column `count`, from a row of the stream."""
    count = int(batch.pop("count"))
    return {name: value[:count] if np.ndim(value) else value for name, value in batch.items()}


def skipped_files(text: str) -> list[list[str]]:
    """The [name, why] pairs in a row's column `skipped`."""
    return list(json.loads(text))


def to_tensors(batch: WorkerBatch, device: torch.device, chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """A worker's batch as the network takes it.

    Args:
        batch: a row of the stream after `trim`.
        device: of the worker.
        chain: of degradations, that of the configuration. Pairs are degraded already.

    Returns:
        clean and noisy (b, 3, h, w) in channels-last memory, and sigma (b,).
    """
    sigma = _on_device(batch["sigma"], device)
    clean = _as_images(batch["clean"], device)
    if "noisy" in batch:  # a photographed pair, whose true noise level is not known
        return clean, _as_images(batch["noisy"], device), sigma
    seeds = batch["seed"].tolist()
    if "levels" not in batch:
        return clean, chain.degraded(clean, levels=sigma[:, None], seeds=seeds), sigma
    import torch

    levels = torch.from_numpy(batch["levels"].copy())  # on the CPU, where most steps need their numbers
    degraded = chain.degraded(clean, levels=levels, seeds=seeds)
    return clean, degraded.contiguous(memory_format=torch.channels_last), sigma


def labels(batch: WorkerBatch, device: torch.device) -> Tensor | None:
    """Train ids (b, h, w) uint8 of a worker's batch, 255 to be ignored; None if it has no labels."""
    return _on_device(batch["label"], device) if "label" in batch else None


def _as_images(pixels: NDArray[Any], device: torch.device) -> Tensor:
    return _on_device(pixels, device).permute(0, 3, 1, 2).float() / 255


def _on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device. To a GPU it is copied from pinned memory, so that the host does not wait for it."""
    import torch

    if device.type != "cuda":
        return torch.from_numpy(array.copy()).to(device)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)
