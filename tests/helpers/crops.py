"""Crops cut one by one, to hold the stream against."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.config import Config
from pipelines.data import plan, stream

_COLUMNS = ("clean", "sigma", "seed", "levels")


Take = Callable[[], list[dict[str, np.ndarray]]]


def begun(config: Config, items: pa.Table, first: int = 0) -> Take:
    """Begin a stream; the function gives the batches of all workers, put together, to the end.

    It checks that each worker got its own parts in order.
    """
    splits = stream.stream(config, items, first).streaming_split(config.train.workers[1], equal=True)
    return partial(_together, splits, list(range(first, plan.total_steps(config, items.num_rows))))


def side_by_side(streams: Sequence[Take]) -> list[list[dict[str, np.ndarray]]]:
    """What each of several streams gives: a stream mostly waits for Ray's processes to start."""
    with ThreadPoolExecutor(3) as pool:
        return [future.result() for future in [pool.submit(take) for take in streams]]


def _together(splits: list[Any], wanted: list[int]) -> list[dict[str, np.ndarray]]:
    got = taken(splits)
    for worker, rows in enumerate(got):
        assert [(int(row["step"]), int(row["rank"])) for row in rows] == [(step, worker) for step in wanted]
    return [
        {name: np.concatenate([row[name] for row in parts]) for name in _COLUMNS if name in parts[0]}
        for parts in zip(*got, strict=True)
    ]


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def reference(config: Config, items: pa.Table) -> list[dict[str, np.ndarray]]:
    """The whole run by a plain loop and PIL's decoder."""
    batches = []
    size, an_epoch = config.data.crop_size, plan.steps_per_epoch(config, items.num_rows)
    for step in range(plan.total_steps(config, items.num_rows)):
        table = plan.epoch_table(config, items.num_rows, step // an_epoch)
        rows = plan.crops_of(table, config, step % an_epoch, step % an_epoch + 1).to_pylist()
        crops = []
        for row in rows:
            with Image.open(items["image"][row["item"]].as_py()) as image:
                pixels = np.asarray(image)
            top = int(row["top"] * (pixels.shape[0] - size + 1))
            left = int(row["left"] * (pixels.shape[1] - size + 1))
            crop = pixels[top : top + size, left : left + size]
            crops.append(crop[:, ::-1] if row["flip"] else crop)
        sigma, seed = (np.array([row[name] for row in rows]) for name in ("sigma", "seed"))
        levels = [[row[name] for name in table.column_names if name.startswith(plan.LEVEL)] for row in rows]
        batch = {"clean": np.stack(crops), "sigma": sigma.astype(np.float32), "seed": seed}
        batches.append(batch | ({"levels": np.array(levels, np.float32)} if levels[0] else {}))
    return batches


def dealt(config: Config, items: pa.Table, first: int = 0) -> list[list[dict[str, Any]]]:
    """What each worker is handed."""
    return taken(stream.stream(config, items, first).streaming_split(config.train.workers[1], equal=True))


def taken(splits: list[Any]) -> list[list[dict[str, Any]]]:
    """The rows of each worker, taken side by side as Ray Train does."""
    got: list[list[dict[str, Any]]] = [[] for _ in splits]

    def take(worker: int) -> None:
        for batch in splits[worker].iter_batches(batch_size=1, batch_format="numpy"):
            got[worker].append(stream.trim({name: column[0] for name, column in batch.items()}))

    threads = [threading.Thread(target=take, args=(worker,)) for worker in range(len(splits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return got
