"""Crops a second from PNG files, through Ray Data, to tensors with their noise on the device."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from pipelines.config import Config
from pipelines.data import index, stream
from pipelines.runtime import session
from pipelines.scenes import write_scenes
from pipelines.training.batches import Loader
from tests.gpu.options import Options, options
from tests.gpu.results import record


def rate(config: Config, given: Options) -> float:
    """Crops a second, from the first batch to the last."""
    load = Loader(config, given.device)
    items = index.index(config.data.root, "train", labels="ignore")
    (shard,) = stream.stream(config, items).streaming_split(1, equal=True)
    crops, start = 0, 0.0
    for batch in shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        loaded = load({name: column[0] for name, column in batch.items()})
        start = start or time.perf_counter()
        crops += len(loaded.clean)
    if given.device.type == "cuda":
        torch.cuda.synchronize(given.device)
    return (crops - config.train.batch_size) / (time.perf_counter() - start)


def main() -> None:
    given = options(__doc__)
    cores = torch.get_num_threads() if given.small else max(2, torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="d2sm-gpu-") as folder:
        root = given.data or write_scenes(Path(folder) / "scenes", train=24, val=1, height=256, width=384)
        session.start(cpus=cores)
        config = Config().replace(
            {
                "data.root": str(root), "data.crop_size": 64 if given.small else 128, "data.crops_per_image": 4,
                "train.batch_size": 8 if given.small else 32, "train.epochs": 2 if given.small else 40,
                "loss.weight": 0,
            }
        )  # fmt: skip
        record("ingest", f"from PNG to the device, {cores} cores: crops a second", rate(config, given))


if __name__ == "__main__":
    main()
