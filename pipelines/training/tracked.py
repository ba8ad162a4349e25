"""A training's MLflow run."""

from __future__ import annotations

from pipelines import tracking
from pipelines.config import Config
from pipelines.runs.folder import RunFolder


def open_run(config: Config, folder: RunFolder) -> tracking.Run:
    """The MLflow run of a training; the one it had before if it is resumed."""
    known = folder.read_info()
    tags = {"d2sm.recipe": config.recipe, "d2sm.folder": folder.place}
    if "fingerprint" in known:
        tags["d2sm.data"] = str(known["fingerprint"])
    if config.tracking.parent:
        tags["mlflow.parentRunId"] = config.tracking.parent
    run = tracking.open_run(config, run_dir=folder.path, tags=tags, run_id=known.get("run_id"))
    folder.write_info(run_id=run.id, page=run.page)
    return run
