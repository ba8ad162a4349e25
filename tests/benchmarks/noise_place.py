"""Where the noise is best added: in the worker, to uint8 crops, or in the ingest task, which then ships float32.

    python -m tests.benchmarks.noise_place [ROOT]        ROOT in the Cityscapes layout; none: built-in scenes

Both ways read the same crops through the same Ray Data stream, in turn; seconds until the worker holds all clean and
noisy tensors of the run, and the bytes a crop takes on its way.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch

from pipelines.config import Config
from pipelines.data import index as cityscapes
from pipelines.data import stream as data
from pipelines.recipes import recipe
from pipelines.runtime import session
from pipelines.scenes import write_scenes
from tests.benchmarks.timing import machine, table

ROUNDS = 3
CPU = torch.device("cpu")


def in_the_worker(config: Config, items: pa.Table) -> int:
    """What training does; gives the bytes received."""
    received = 0
    for batch in data.stream(config, items).iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        received += batch["clean"].nbytes
        data.to_tensors({name: column[0] for name, column in batch.items()}, CPU, config.degradation)
    return received


def noise(batch: data.WorkerBatch) -> data.WorkerBatch:
    """The other way: the noisy crops are made in the ingest task."""
    _, noisy, _ = data.to_tensors({name: column[0] for name, column in batch.items()}, CPU, Config().degradation)
    return {**batch, "noisy": noisy.contiguous().numpy()[None]}


def in_the_task(config: Config, items: pa.Table) -> int:
    received = 0
    stream = data.stream(config, items).map_batches(noise, batch_size=1, batch_format="numpy")
    for batch in stream.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        received += batch["clean"].nbytes + batch["noisy"].nbytes
        torch.from_numpy(batch["noisy"][0].copy())
        torch.from_numpy(batch["clean"][0].copy()).permute(0, 3, 1, 2).float().div_(255)
    return received


def main(root: str | None) -> None:
    folder = Path(root) if root else write_scenes(Path(tempfile.mkdtemp()) / "scenes")
    changes = {"data.root": str(folder), "data.crop_size": 128, "data.crops_per_image": 8, "train.num_workers": 1}
    config = recipe("ffdnet_d2sm_cpu").replace({**changes, "train.epochs": 2})
    items = cityscapes.index(folder, "train")
    session.start(cpus=3)
    crops = config.train.epochs * (items.num_rows * 8 // config.train.batch_size) * config.train.batch_size
    ways = {"in the worker": in_the_worker, "in the ingest task": in_the_task}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    size = {}
    for index in range(ROUNDS + 1):  # the first round starts processes and is not counted
        for name, way in ways.items():
            start = time.perf_counter()
            size[name] = way(config, items) / crops
            if index:
                taken[name].append(time.perf_counter() - start)
    first = median(taken["in the worker"])
    rows = [
        [name, f"{crops / median(times):.0f}", f"{median(times) / first:.2f}", f"{size[name] / 1024:.0f}"]
        for name, times in taken.items()
    ]
    print(machine(CPU), f"; {crops} crops of 128 x 128, medians of {ROUNDS}", sep="")
    print(table(["noise added", "crops / s", "time, ratio", "KiB a crop"], rows))
    print(f"spread: { ({name: [round(float(t), 2) for t in np.sort(times)] for name, times in taken.items()}) }")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
