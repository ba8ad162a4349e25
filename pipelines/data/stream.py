"""From the plan to the workers: Ray Data decodes, cuts and streams uint8 crops; the worker adds the noise.

The whole run is one streaming pass. A row of the stream is one worker's share of one step, so with order preserved the
splitter deals row k to worker k mod W, which checks it. An ingest task decodes each of its images once for all crops
that its steps cut from it; of what `d2sm prepare` stored it reads the crops' rows, and the crops are the same.

Noise is added in the worker: crops travel as uint8. Added in the ingest task it took 1.27 times as long, and a crop 240
instead of 48 KiB (tests/benchmarks/noise_place.py, crops of 128, 2 cores with other work beside).

Ingest tasks import this file, so torch waits until `to_tensors`, in the worker: without it a task's process starts in a
fraction of the time and memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from pipelines.config import Config
from pipelines.data import plan, shards
from pipelines.data.images import ImageError
from pipelines.data.index import DataError
from pipelines.data.items import open_image
from pipelines.runtime import private

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Row = dict[str, NDArray[Any]]
_Picture = NDArray[np.uint8] | shards.StoredImage
_MAX_TASKS = 2000  # Ray holds a description of each; beyond, a task prepares several runs of steps


def stream(config: Config, items: pa.Table, first_step: int = 0, *, workers: int | None = None) -> ray.data.Dataset:
    """The run's shares from `first_step` to its end, in order: worker 0's of a step, worker 1's, and so on.

    Columns, a share of b crops a row: step, part, count (int64), clean (b, h, w, 3) uint8, noisy the same (pairs
    only), label (b, h, w) uint8 (cross-entropy only), sigma (b,) float32, seed (b,) int64, skipped (JSON list of
    [name, why]). b is batch_size / workers, rounded up; of these the worker takes the first `count` (`taken`), since
    a number of workers that may change does not always divide the batch.

    Args:
        workers: that the steps are dealt to; None: as configured.
    """
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # every row its own block, so that the splitter deals rows, not heaps of them
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A task makes its rows at its end, and all may wait for the stream. With Ray's two it kept its CPU while they were
    # fetched two by two, a tenth of a second each time: 0.96 times a DataLoader's crops a second at four crops an
    # image, and 1.28 so (tests/benchmarks/ingest.py).
    private.let_blocks_wait(context, plan.steps_per_task(config) * (workers or config.train.workers[1]))
    context.execution_no_progress_timeout_s = 300
    context.raise_original_map_exception = True  # else the reason is lost: only its text comes through
    total = plan.total_steps(config, items.num_rows)
    runs = _runs(config, items.num_rows, first_step, total)
    with ray.data.DataContext.current(context):  # a data set keeps the context it was made in
        # Not from_arrow, which asks a task for the table's size: where workers hold every CPU, it would wait for ever.
        source = ray.data.from_items(
            [{"first": first, "last": last} for first, last in runs], override_num_blocks=min(len(runs), _MAX_TASKS)
        )
        return source.map_batches(
            _Prepare(config, items, workers),
            batch_size=1,
            batch_format="numpy",
            zero_copy_batch=True,
            **_reserved(config),
        )


def _reserved(config: Config) -> dict[str, Any]:
    """What ingest tasks reserve. Workers whose number may grow take every CPU there is, and a task that asks for one
    would then wait for ever: so theirs ask for none, and only so many run at once as `train.data_cpus` says."""
    if not config.train.elastic:
        return {}
    return {"num_cpus": 0, "concurrency": max(1, round(config.train.data_cpus))}


def _runs(config: Config, items: int, first_step: int, total: int) -> list[tuple[int, int]]:
    """[first, last) steps of each ingest task; a task stays within an epoch."""
    an_epoch, a_task = plan.steps_per_epoch(config, items), plan.steps_per_task(config)
    edges = {
        step
        for start in range(0, total, an_epoch)
        for step in (*range(start, min(start + an_epoch, total), a_task), min(start + an_epoch, total))
    }
    edges = {edge for edge in edges if edge > first_step} | {first_step}
    ordered = sorted(edges)
    return list(pairwise(ordered))


class _Prepare:
    """What an ingest task does: its steps' rows of the plan, every image decoded once, crops cut, shares emitted."""

    def __init__(self, config: Config, items: pa.Table, workers: int | None = None) -> None:
        self.config, self.items, self.workers = config, items, workers or config.train.workers[1]

    def __call__(self, batch: Row) -> Iterator[Row]:
        for first, last in zip(batch["first"], batch["last"], strict=True):
            yield from self._shares(int(first), int(last))

    def _shares(self, first: int, last: int) -> Iterator[Row]:
        config, an_epoch = self.config, plan.steps_per_epoch(self.config, self.items.num_rows)
        epoch = first // an_epoch
        table = _epoch(config, self.items.num_rows, epoch)
        rows = table.slice(
            (first - epoch * an_epoch) * config.train.batch_size, (last - first) * config.train.batch_size
        )
        crops, skipped = cut(config, self.items, rows)
        batch, workers = config.train.batch_size, self.workers
        for step, part in product(range(first, last), range(workers)):
            start, count = share_of(batch, part, workers)
            rows_of_it = slice((step - first) * batch + start, (step - first) * batch + start + -(-batch // workers))
            yield {
                "step": np.array([step]),
                "part": np.array([part]),
                "count": np.array([count]),
                **{name: array[None, rows_of_it] for name, array in crops.items()},
                "skipped": np.array([json.dumps(skipped if (step, part) == (first, 0) else [])]),
            }


def share_of(batch: int, part: int, workers: int) -> tuple[int, int]:
    """Where a worker's share of a step begins, and how many crops it has; shares differ by one crop at most.

    A share's begin and the largest share's length never reach beyond the batch.
    """
    start = batch * part // workers
    return start, batch * (part + 1) // workers - start


def taken(row: Row) -> Row:
    """A row of the stream, cut to the crops that are this worker's."""
    count = int(row.pop("count"))
    return {name: value[:count] if np.ndim(value) else value for name, value in row.items()}


@lru_cache(maxsize=2)
def _epoch(config: Config, items: int, epoch: int) -> pa.Table:
    return plan.epoch_table(config, items, epoch)


def cut(config: Config, items: pa.Table, rows: pa.Table) -> tuple[dict[str, NDArray[Any]], list[list[str]]]:
    """Decode the images that some rows of the plan name, each once, and cut their crops.

    An unreadable image stops the run (`data.bad_images=stop`), or its crops come from the next image by name. A damaged
    shard always stops it: it can be mended.

    Returns:
        clean (with noisy for pairs, with label for the cross-entropy), sigma and seed, and the [name, why] of what was
        skipped.
    """
    size = config.data.crop_size
    has_noisy = items["noisy"].null_count < items.num_rows
    wanted_columns: dict[shards.Column, bool] = {"image": True, "noisy": has_noisy, "label": has_labels(config)}
    names = [column for column, there in wanted_columns.items() if there]
    wanted = rows.to_pylist()
    crops = {name: np.empty((len(wanted), size, size, *[3] * (name != "label")), np.uint8) for name in names}
    skipped: list[list[str]] = []
    of_item: dict[int, list[int]] = {}
    for index, row in enumerate(wanted):
        of_item.setdefault(row["item"], []).append(index)
    for item, indices in of_item.items():
        images, bad = _decode(config, items, names, item)
        skipped += bad
        for index in indices:
            for name, image in zip(names, images, strict=True):
                crops[name][index] = _crop(image, wanted[index], size)
    columns = {"clean": crops.pop("image"), "sigma": rows["sigma"].to_numpy(), "seed": rows["seed"].to_numpy()}
    return columns | crops, skipped


def has_labels(config: Config) -> bool:
    """Whether crops carry their labels: only where a term asks for them, since decoding them takes time."""
    return bool(config.loss.cross_entropy)


def _decode(
    config: Config, items: pa.Table, names: list[shards.Column], item: int
) -> tuple[list[_Picture], list[list[str]]]:
    """An item's image (and noisy one, and labels), or those of the next that can be read, and what was skipped.

    The next by name, so that neither the tasks nor the step at which a run was resumed make a difference.
    """
    skipped: list[list[str]] = []
    for number in (*range(item, items.num_rows), *range(item)):
        try:
            row = items.slice(number, 1).to_pylist()[0]
            return [open_image(row, name) for name in names], skipped
        except ImageError as error:
            if config.data.bad_images == "stop":
                raise
            skipped.append([items["name"][number].as_py(), str(error)])
    raise DataError(f"{skipped[0][0]}: none of {items.num_rows} images can be read: {skipped[0][1]}")


def _crop(image: _Picture, row: dict[str, Any], size: int) -> NDArray[Any]:
    height, width = image.shape[:2]
    top, left = int(row["down"] * (height - size + 1)), int(row["across"] * (width - size + 1))
    crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if row["flip"] else crop


def to_tensors(row: Row, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A share as the network takes it: clean, noisy (b, 3, h, w) in channels-last memory, sigma (b,)."""

    from d2sm.noise import add_noise

    sigma = _moved(row["sigma"], device)
    clean = _images(row["clean"], device)
    if "noisy" in row:  # a real pair: its noise level is not known
        return clean, _images(row["noisy"], device), sigma
    return clean, add_noise(clean, sigma=sigma, seeds=row["seed"].tolist()), sigma


def labels(row: Row, device: torch.device) -> Tensor | None:
    """A share's train ids (b, h, w) uint8, 255 where there is none; None where crops carry no labels."""
    return _moved(row["label"], device) if "label" in row else None


def _images(pixels: NDArray[Any], device: torch.device) -> Tensor:
    return _moved(pixels, device).permute(0, 3, 1, 2).float() / 255


def _moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device, which a GPU fetches by itself: from pinned memory, else the host would wait for it."""
    import torch

    if device.type != "cuda":
        return torch.from_numpy(array.copy()).to(device)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)


def skipped_files(text: str) -> list[list[str]]:
    """The [name, why] pairs that a row carries."""
    return list(json.loads(text))


def left_out(items: pa.Table) -> list[list[str]]:
    """The [name, why] of the images that indexing found unusable already (`data.bad_images=skip`)."""
    found = json.loads((items.schema.metadata or {}).get(b"skipped", b"[]"))
    return [[bad["name"], bad["why"]] for bad in found]
