"""A training's MLflow run."""

from __future__ import annotations

from pathlib import Path

from pipelines import tracking
from pipelines.config import Config
from pipelines.runs import folder as run_folder


def open_run(config: Config, run_dir: Path) -> tracking.Run:
    """The run's MLflow record, continued when there is one."""
    known = run_folder.read_run(run_dir)
    tags = {"d2sm.recipe": config.recipe, "d2sm.data": known["fingerprint"], "d2sm.folder": run_folder.place_of(config)}
    if config.tracking.parent:
        tags["mlflow.parentRunId"] = config.tracking.parent
    run = tracking.open_run(config, run_dir=run_dir, tags=tags, run_id=known.get("run_id"))
    run_folder.write_run(run_dir, run_id=run.id, page=run.page)
    return run
