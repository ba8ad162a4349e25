"""A step as it is, with `train.cuda_graphs` and with `train.compile`; matching with compiled arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.config import Config, ConfigError
from pipelines.training import compiled
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.benchmarks.queues import fill
from tests.benchmarks.steps import ROWS, rows_of, settings
from tests.benchmarks.timing import interleaved
from tests.gpu import matching
from tests.gpu.options import Options, options
from tests.gpu.results import record
from tests.gpu.steps import SMALL

LITE0 = {"loss.features": "efficientnet_lite0.blocks.4"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ffdnet_d2sm_gpu": ("ffdnet_d2sm_gpu", {}),
    "ffdnet_d2sm_internal_gpu": ("ffdnet_d2sm_internal_gpu", {}),
    "FFDNet 32 x 8, 16 crops of 96, Lite0": (
        "ffdnet_d2sm_gpu",
        {"model.width": 32, "model.depth": 8, "data.crop_size": 96, **LITE0},
    ),
    "FFDNet 96 x 12, 32 crops of 128, Lite0": (
        "ffdnet_d2sm_gpu",
        {"data.crop_size": 128, "train.batch_size": 32, **LITE0},
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "train.cuda_graphs": {"train.cuda_graphs": True},
    "train.compile": {"train.compile": True},
}


def built(config: Config, given: Options) -> TrainState:
    """With full queues, and whatever is compiled or captured in place."""
    state = TrainState(config, 10**6, device=given.device)
    row = rows_of(config, 0)[0]
    train_step(state, row, 0)
    assert state.objective.d2sm is not None
    fill(state.objective.d2sm.matching)
    for step in range(1, 3):
        train_step(state, row, step)
    return state


def measure(name: str, modes: Sequence[str], given: Options) -> None:
    recipe, changes = CASES[name]
    config = settings(recipe, 1, torch.get_num_threads(), given.device).replace(changes)
    config = config.replace(SMALL) if given.small else config
    rows, states = rows_of(config, 0), dict[str, TrainState]()
    for mode in modes:
        try:
            states[mode] = built(config.replace(MODES[mode]), given)
        except ConfigError as error:  # it cannot be had here: said, and the others are measured
            print(error, flush=True)
    steps = {
        mode: (lambda state=state: [train_step(state, row, 0) for row in rows])  # type: ignore[misc]
        for mode, state in states.items()
    }
    for mode, passed in interleaved(steps, given.device, rounds=3 if given.small else 12).items():
        record("modes", f"{name}, {mode}: step, ms", passed / ROWS * 1e3)


def main() -> None:
    given = options(__doc__)
    if given.small:
        compiled.BACKEND = "aot_eager"  # no compiler is needed to try the script
    names = list(CASES)[: 1 if given.small else None]
    for name in names:
        measure(name, ["as it is", "train.cuda_graphs"], given)
    for shape in matching.SMALL if given.small else matching.SHAPES:  # last, since compiling takes long
        matching.compiled(*shape, given)
    for name in names:
        measure(name, ["train.compile"], given)


if __name__ == "__main__":
    main()
