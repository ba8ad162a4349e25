"""MLflow: runs are written through the names below.

`store` finds the store and connects to it, `outbox` sends in the background, `registered` finds and downloads
registered models, `segmenter` loads those that are segmenters, `bundle` makes a checkpoint a model that the registry
keeps. Importing any of them does not import mlflow, which is slow to load.
"""

from __future__ import annotations

from pipelines.tracking.run import Run, Status, commit, end_runs, open_run, provenance
from pipelines.tracking.store import TrackingError, ui_command, uri_of

__all__ = ["Run", "Status", "TrackingError", "commit", "end_runs", "open_run", "provenance", "ui_command", "uri_of"]
