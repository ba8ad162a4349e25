"""Finished runs as the comparison reads them, made without training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from d2sm.noise import seed_of
from pipelines import tracking
from pipelines.comparison import rows as runs
from pipelines.comparison.rows import Row
from pipelines.config import Config
from pipelines.networks.models import build
from pipelines.recipes import recipe
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import CONVENTION, RESULTS, Results, Score


def results(psnr: float = 27.0, miou: float | None = 0.6, data: str = "abc") -> Results:
    restored = {level: Score(psnr - k, 0.8, miou, {"road": 0.9}) for k, level in enumerate(("25", "35", "50"))}
    noisy = {level: Score(20.0 - k, 0.3, 0.2, {"road": 0.5}) for k, level in enumerate(restored)}
    return Results(3, "val", data, "espnet-camvid", CONVENTION, noisy, restored, Score(None, None, 0.7, {"road": 1.0}))


def finished(folder: Path, config: Config, found: Results | None = None, *, final: bool = True) -> Path:
    """A run as training and evaluation leave it: real files, but for the weights, which were not trained."""
    config = config.replace({"model.width": 4, "model.depth": 3, "train.name": folder.name})
    about = {"step": 8, "steps": 8, "final": final, "commit": "c0ffee", "dirty": True}
    checkpoint.write(
        folder / checkpoint.name_of(8),
        weights=build(config.model).state_dict(),
        state={},
        config=config,
        meta=about,
    )
    config.save(folder / checkpoint.CONFIG)
    if found is not None:
        found.save(folder / RESULTS)
    return folder


def row(root: Path, folder: Path, name: str, **changes: object) -> Row:
    """A finished run's row, on drawn scenes, with small features and that segmenter."""
    drawn = {
        "data.root": str(root), "data.crop_size": 32, "evaluate.segmenter": "tests.helpers.segmenters:by_brightness",
        "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "train.storage": str(folder),
    }  # fmt: skip
    config = recipe(name).replace(drawn | {key.replace("__", "."): value for key, value in changes.items()})
    (found,) = runs.gather([finished(folder / "-".join([name, *map(str, changes.values())]), config, results())])
    (run,) = found.runs
    network = build(run.config.model)
    generator = torch.Generator().manual_seed(seed_of(name))
    with torch.no_grad():  # a fresh FFDNet repeats its input, so that all rows would look alike
        for weight in network.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)
    save_file(network.state_dict(), run.checkpoint / checkpoint.MODEL)
    return found


def log(finished: runs.Finished, entries: dict[int, dict[str, float]], run_id: str | None = None) -> str:
    """One part of a training's log, as training writes it; gives the MLflow run, which may be gone on with."""
    with tracking.open_run(finished.config, run_dir=finished.folder, tags={}, run_id=run_id) as run:
        for step, numbers in entries.items():
            run.log(step, numbers)
    RunFolder.at(finished.folder).write_info(run_id=run.id)
    return run.id


def entries(start: int, stop: int, *, rate: float, scale: float = 1.0, **more: float) -> dict[int, dict[str, float]]:
    fixed = {"steps_per_second": rate, "loss": 1.0, **{f"loss.{name}": value for name, value in more.items()}}
    return {step: {**fixed, "loss.l1": scale / step} for step in range(start, stop + 1, 2)}
