"""Whole steps and their parts: each backbone, with VGG-19 as Phi by random weights, which cost the same."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.config import Config
from tests.benchmarks.steps import measure, settings
from tests.gpu.options import Options, options
from tests.gpu.results import record

# name: recipe, changed keys
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ffdnet_d2sm_gpu": ("ffdnet_d2sm_gpu", {}),
    "ffdnet_d2sm_gpu with EMA and clipping": ("ffdnet_d2sm_gpu", {"train.ema": 0.999, "train.clip": 1.0}),
    "ffdnet_d2sm_internal_gpu": ("ffdnet_d2sm_internal_gpu", {}),
} | {
    f"{backbone}, crops of {crop}, q {queue}": (
        f"{backbone}_d2sm_gpu",
        {"data.crop_size": crop, "train.batch_size": 16 if crop == 128 else 2, "loss.queue_size": queue},
    )
    for crop, queue in ((128, 256), (128, 4096), (512, 256), (512, 4096))  # last the queues of 17 GB
    for backbone in ("ffdnet", "cbdnet", "sadnet")
}
SMALL = {
    "data.crop_size": 64, "train.batch_size": 2, "loss.queue_size": 8, "loss.patch_size": None, "model.width": 8,
    "loss.features": "efficientnet_lite0.bn1", "train.precision": "fp32",
}  # fmt: skip


def case(name: str, given: Options) -> Config:
    recipe, changes = CASES[name]
    config = settings(recipe, 1, torch.get_num_threads(), given.device).replace(changes)
    return config.replace(SMALL) if given.small else config


def main() -> None:
    given = options(__doc__)
    for name in list(CASES)[:2] if given.small else CASES:
        found = measure(case(name, given), given.device, rounds=3 if given.small else 15)
        record("steps", f"{name}: step, ms", found.whole * 1e3)
        record("steps", f"{name}: step, ms, back to back", found.back_to_back * 1e3)
        for part, passed in found.parts.items():
            record("steps", f"{name}: {part}, ms", passed * 1e3)
        record("steps", f"{name}: of the best rate, %", found.of_the_peak * 100)
        record("steps", f"{name}: most memory, GiB", found.memory / 2**30)
        if given.device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
