"""Streams a data set through an object store that is far smaller, and prints what that took, as JSON.

    python -m tests.helpers.streamed FOLDER [STORE_MIB]

A process of its own, since a Ray that runs keeps the store it was started with. 40 images of 2048 x 1024, 16 crops of
256 each, twice: 240 MiB of pixels on disk, 240 MiB of crops on their way. The reader dawdles at first, so that whatever
would run ahead of it does.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from pathlib import Path

import psutil
import ray

from pipelines.config import Config
from pipelines.data import index, stream
from pipelines.data.images import write_png
from pipelines.prepare import prepare
from pipelines.runtime import session
from pipelines.scenes import scene

IMAGES, SIZE = 40, (1024, 2048)


class Watch:
    """The largest memory seen, in MiB: of one ingest task, of all processes together, of the store."""

    def __init__(self) -> None:
        self.task = self.processes = self.store = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _loop(self) -> None:
        while not self.done.wait(0.2):
            me = psutil.Process()
            own = {p: memory(p) for p in (me, *me.children(recursive=True))}
            self.processes = max(self.processes, sum(anonymous for anonymous, _ in own.values()))
            self.store = max(self.store, sum(shared for _, shared in own.values()))
            for process, (anonymous, _) in own.items():
                with contextlib.suppress(psutil.Error):
                    if "MapBatches" in " ".join(process.cmdline()):
                        self.task = max(self.task, anonymous)


def memory(process: psutil.Process) -> tuple[float, float]:
    """MiB of a process's own, and of what it shares through the store; pages of mapped files are neither."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0, 0.0
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(Anonymous|Pss_Shmem): +(\d+) kB", text, re.M)}
    return found.get("Anonymous", 0.0), found.get("Pss_Shmem", 0.0)


def streamed(root: Path) -> dict[str, float]:
    changes = {"data.root": str(root), "data.crop_size": 256, "data.crops_per_image": 16, "data.shuffle_images": 8,
               "train.epochs": 2, "loss.weight": 0}  # fmt: skip
    config = Config().replace(changes)
    items = index.index(root, "train", labels="ignore")
    crops = 0
    with Watch() as watch:
        (shard,) = stream.stream(config, items).streaming_split(1, equal=True)
        for number, batch in enumerate(shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2)):
            crops += batch["clean"].shape[1]
            if number < 5:
                time.sleep(1)
    address = ray.get_runtime_context().gcs_address  # else it asks whichever Ray this machine started last
    summary = ray._private.internal_api.memory_summary(address=address, stats_only=True)
    spilled = re.search(r"Spilled (\d+) MiB", summary)
    return {
        "crops": crops,
        "task_mib": round(watch.task),
        "processes_mib": round(watch.processes),
        "store_mib": round(watch.store),
        "spilled_mib": int(spilled[1]) if spilled else 0,
    }


def main(folder: Path, store_mib: int) -> None:
    session.quiet()
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=store_mib * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    source = folder / "leftImg8bit/train/city"
    first = source / "city_000000_leftImg8bit.png"
    write_png(first, scene(0, *SIZE)[0])
    for number in range(1, IMAGES):
        (source / f"city_{number:06d}_leftImg8bit.png").hardlink_to(first)
    found = {"png": streamed(folder)}
    with Watch() as watch:
        made = prepare(folder, folder / "prepared", splits=["train"], shard_mb=64, quiet=True)
    found["prepare"] = {"task_mib": round(watch.task), "store_mib": round(watch.store)}
    found["prepared"] = {"on_disk_mib": round(made.bytes / 2**20), **streamed(made.root)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 80)
