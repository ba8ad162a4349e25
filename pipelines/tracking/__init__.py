"""MLflow: runs are written through the names below.

`store` finds the store of a configuration and connects to it, `location` that of a run on disk, `outbox` sends in the
background, `registered` finds and downloads registered models, `segmenter` loads those that are segmenters, `bundle`
makes a checkpoint a model that the registry keeps. Importing any of them does not import mlflow, which is slow to load.
"""

from __future__ import annotations

from pipelines.tracking.run import Run, Status, commit, end_runs, open_run, provenance, reopen
from pipelines.tracking.store import TrackingError, ui_command, uri_of

__all__ = [
    "Run",
    "Status",
    "TrackingError",
    "commit",
    "end_runs",
    "open_run",
    "provenance",
    "reopen",
    "ui_command",
    "uri_of",
]
