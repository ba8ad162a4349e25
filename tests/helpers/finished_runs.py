"""Finished runs as the comparison reads them, written without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from d2sm.noise import seed_of
from pipelines import tracking
from pipelines.comparison.rows import FinishedRun, Row, read_rows
from pipelines.config import Config
from pipelines.networks.models import build
from pipelines.recipes import recipe
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import CONVENTION, RESULTS, Results, Score


def results(psnr: float = 27.0, miou: float | None = 0.6, data: str = "abc") -> Results:
    """An evaluation of 3 images at sigma 25, 35 and 50; `psnr` and `miou` of the restored at sigma 25."""
    restored = {level: Score(psnr - k, 0.8, miou, {"road": 0.9}) for k, level in enumerate(("25", "35", "50"))}
    noisy = {level: Score(20.0 - k, 0.3, 0.2, {"road": 0.5}) for k, level in enumerate(restored)}
    clean = Score(None, None, 0.7, {"road": 1.0})
    return Results(3, "val", data, "espnet-camvid", CONVENTION, noisy, restored, clean)


def write_run(
    folder: Path,
    config: Config,
    found: Results | None = None,
    *,
    final: bool = True,
    perturbed_by: str = "",
    init: str = "",
) -> Path:
    """Write a run as training and evaluation do, with random weights of a small network; gives its folder.

    Args:
        found: of the evaluation; None: not evaluated.
        final: False: stopped before its last step.
        perturbed_by: seeds noise on the weights, since a fresh FFDNet returns its input; "": none.
        init: what it started from.
    """
    config = config.replace({"model.width": 4, "model.depth": 3, "train.name": folder.name})
    network = build(config.model)
    if perturbed_by:
        generator = torch.Generator().manual_seed(seed_of(perturbed_by))
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    checkpoint.write(
        folder / checkpoint.name_of(8),
        weights=network.state_dict(),
        state={},
        config=config,
        meta={"step": 8, "steps": 8, "final": final, "commit": "c0ffee", "dirty": True, "init": init},
    )
    config.save(folder / checkpoint.CONFIG)
    if found is not None:
        found.save(folder / RESULTS)
    return folder


def write_row(root: Path, folder: Path, name: str, **changes: Any) -> Row:
    """Write a finished run of a recipe on the scenes in `root`, with small features; gives it as a row.

    Args:
        folder: of all runs; it also holds their MLflow store.
        name: of the recipe.
        changes: dotted keys with `__` for the dot.
    """
    small = {
        "data.root": str(root), "data.crop_size": 32, "evaluate.segmenter": "tests.helpers.segmenters:by_brightness",
        "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "train.storage": str(folder),
    }  # fmt: skip
    config = recipe(name).replace(small | {key.replace("__", "."): value for key, value in changes.items()})
    where = folder / "-".join([name, *map(str, changes.values())])
    (row,) = read_rows([write_run(where, config, results(), perturbed_by=name)], trust=True)
    return row


def log_training(run: FinishedRun, entries: dict[int, dict[str, float]], run_id: str | None = None) -> str:
    """Log a part of a training to MLflow as training does; gives the id of the MLflow run.

    Args:
        entries: of the log, by step.
        run_id: of the MLflow run to continue; None: a new one.
    """
    with tracking.open_run(run.config, run_dir=run.folder, tags={}, run_id=run_id) as mlflow_run:
        for step, numbers in entries.items():
            mlflow_run.log(step, numbers)
    RunFolder.at(run.folder).write_info(run_id=mlflow_run.id)
    return mlflow_run.id


def log_entries(
    start: int, stop: int, *, rate: float, scale: float = 1.0, **losses: float
) -> dict[int, dict[str, float]]:
    """Entries of a training log at every second step from `start` to `stop`.

    Args:
        rate: steps per second.
        scale: L1 is scale / step.
        losses: other terms, constant.
    """
    fixed = {"steps_per_second": rate, "loss": 1.0, **{f"loss.{name}": value for name, value in losses.items()}}
    return {step: {**fixed, "loss.l1": scale / step} for step in range(start, stop + 1, 2)}
