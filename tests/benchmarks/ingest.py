"""Crops per second that a training worker gets: our stream against a plain torch DataLoader on the same cores.

    python -m tests.benchmarks.ingest [ROOT] [--crop 128] [--each 1 4] [--rounds 3] [--images 96]

ROOT is in the Cityscapes layout, its images repeated to `--images`; none: the Cityscapes frames beside the checkout,
else built-in scenes of 2048 x 1024. The baseline is what one would write: a data set that opens an image with PIL and
cuts its crops, and a DataLoader with as many processes as our stream has ingest tasks. Both give clean and noisy
tensors of the same crops with the same noise. Ours is read as a training worker reads it, from the PNG files and from
what `d2sm prepare` made of them.

The clock starts at the first batch, and what was made by then is not counted: starting processes is paid once a run.
Ray's tasks run at the priority of everything else here; by default they give way to all other work. The ways take
turns, and ratios are those within a round. Beside the time that passed stands the time that processors worked, which
other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2sm.noise import add_noise
from pipelines.config import Config
from pipelines.data import index as cityscapes
from pipelines.data import plan
from pipelines.data import stream as data
from pipelines.prepare import prepare
from pipelines.runtime import session
from pipelines.scenes import write_scenes
from tests.benchmarks.timing import SHARED, cpu_seconds, goal, machine, table

CPU = torch.device("cpu")
BATCH = 16
LEAST = {"ours, PNG": 1.0, "ours, prepared": 2.5}
Batches = Iterator[tuple[Tensor, ...]]


class Photographs(Dataset[tuple[Tensor, ...]]):
    """An epoch of the plan, image by image."""

    def __init__(self, config: Config, items: pa.Table, epoch: int) -> None:
        self.files = items["image"].to_pylist()
        self.size = config.data.crop_size
        crops = plan.epoch_table(config, items.num_rows, epoch).to_pylist()
        self.crops: dict[int, list[dict[str, float]]] = {}
        for crop in crops:
            self.crops.setdefault(crop["item"], []).append(crop)
        self.order = list(self.crops)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        item = self.order[index]
        with Image.open(self.files[item]) as image:
            pixels = np.asarray(image.convert("RGB"))
        size, cut = self.size, []
        for crop in self.crops[item]:
            top = int(crop["top"] * (pixels.shape[0] - size + 1))
            left = int(crop["left"] * (pixels.shape[1] - size + 1))
            part = pixels[top : top + size, left : left + size]
            cut.append(part[:, ::-1] if crop["flip"] else part)
        clean = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 255
        sigma = torch.tensor([crop["sigma"] for crop in self.crops[item]])
        noisy = add_noise(clean, sigma=sigma, seeds=[int(crop["seed"]) for crop in self.crops[item]])
        return clean, noisy, sigma


def loader(config: Config, items: pa.Table, processes: int) -> Batches:
    """The baseline: epoch after epoch."""
    for epoch in range(config.train.epochs):
        images = BATCH // config.data.crops_per_image
        batches = DataLoader(Photographs(config, items, epoch), batch_size=images, num_workers=processes)
        for batch in batches:
            yield tuple(tensor.flatten(0, 1) for tensor in batch)


def stream(config: Config, items: pa.Table) -> Batches:
    """What a training worker does."""
    (shard,) = data.stream(config, items).streaming_split(1, equal=True)
    for batch in shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield data.to_tensors({name: column[0] for name, column in batch.items()}, CPU, config.degradation)


def rate(batches: Batches, ahead: int) -> tuple[float, float]:
    """Crops a second and crops a second of CPU, from the first batch to the last.

    ahead: how many crops are made by the time that the first batch is there. They are not counted.
    """
    crops = len(next(batches)[0]) - ahead
    start, worked = time.perf_counter(), cpu_seconds()
    for clean, *_ in batches:
        crops += len(clean)
    return crops / (time.perf_counter() - start), crops / (cpu_seconds() - worked)


def repeated(root: Path, folder: Path, images: int) -> Path:
    """A data set of so many images: those of `root`, under new names."""
    files = sorted(root.glob("leftImg8bit/train/*/*.png"))
    for number in range(images):
        copy = folder / f"leftImg8bit/train/city/city_{number:06d}_leftImg8bit.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[number % len(files)], copy)
    return folder


def compare(png: Config, fast: Config, rounds: int, processes: int) -> list[list[str]]:
    """Rows of the table for one number of crops an image."""
    here, there = (cityscapes.index(config.data.root, "train", labels="ignore") for config in (png, fast))
    longer = fast.replace({"train.epochs": 10 * fast.train.epochs})  # else it is over before it has begun
    each = png.data.crops_per_image
    a_batch, a_task = processes * BATCH, processes * plan.steps_per_task(png) * BATCH
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "DataLoader, PIL": lambda: rate(loader(png, here, processes), a_batch),
        "ours, PNG": lambda: rate(stream(png, here), a_task),
        "ours, prepared": lambda: rate(stream(longer, there), a_task),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for index in range(rounds + 1):  # the first round starts processes and fills the page cache
        for name, way in ways.items():
            rates = way()
            if index:
                found[name].append(rates)
            print(f"  {each} crops, round {index}, {name}: {rates[0]:.1f} / s, {rates[1]:.1f} / CPU s", file=sys.stderr)
    base = np.array(found["DataLoader, PIL"])
    rows = []
    for name, measured in found.items():
        passed, worked = (np.array(measured) / base).T
        if name in LEAST:
            crops = f"{each} crop{'s' * (each > 1)} an image"
            goal(f"ingest, {name}, {crops}, to a DataLoader's crops a second", passed, least=LEAST[name])
        rows.append(
            [
                name,
                str(each),
                f"{median(each_round[0] for each_round in measured):.0f}",
                f"{np.median(passed):.2f}x ({passed.min():.2f} to {passed.max():.2f})",
                f"{median(each_round[1] for each_round in measured):.0f}",
                f"{np.median(worked):.2f}x ({worked.min():.2f} to {worked.max():.2f})",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--each", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as folder:
        beside = SHARED / "cityscapes-mini"
        given = args.root or (beside if beside.is_dir() else None)
        given = given or write_scenes(Path(folder) / "scenes", train=8, val=1, height=1024, width=2048)
        root = repeated(given, Path(folder) / "png", args.images)
        session.start(cpus=args.processes)
        fast = prepare(root, Path(folder) / "prepared", splits=["train"], quiet=True).root
        print(
            f"{machine(CPU)}; {args.images} images of {given.name}, crops of {args.crop}, {args.processes} processes; "
            f"medians of {args.rounds} rounds, smallest and largest in brackets\n"
        )
        rows = []
        for each in args.each:
            changes = {"data.root": str(root), "data.crop_size": args.crop, "data.crops_per_image": each}
            changes |= {"train.batch_size": BATCH, "train.epochs": args.epochs, "loss.weight": 0}
            png = Config().replace(changes)
            rows += compare(png, png.replace({"data.root": str(fast)}), args.rounds, args.processes)
        print(table(["", "crops an image", "crops / s", "ratio", "crops / CPU s", "ratio"], rows))
        ray.shutdown()


if __name__ == "__main__":
    main()
