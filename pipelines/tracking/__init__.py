"""MLflow: which store, one run's record, what waits to be sent, and the files of a registered model."""

from __future__ import annotations

from pipelines.tracking.run import Run, Status, commit, open_run, provenance, settle
from pipelines.tracking.store import TrackingError, ui_command, uri_of

__all__ = ["Run", "Status", "TrackingError", "commit", "open_run", "provenance", "settle", "ui_command", "uri_of"]
