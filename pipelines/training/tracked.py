"""A training's MLflow run."""

from __future__ import annotations

from pipelines import tracking
from pipelines.config import Config
from pipelines.runs.folder import RunFolder
from pipelines.runtime.owner import InUseError
from pipelines.runtime.progress import stage
from pipelines.text import one_line
from pipelines.tracking import location, outbox
from pipelines.training import initial


def open_run(config: Config, folder: RunFolder, *, uri: str | None = None) -> tracking.Run:
    """The MLflow run of a training; the one it had before if it is resumed.

    Args:
        uri: of the store, absolute; None: that of the configuration.
    """
    known = folder.read_info()
    tags = {"d2sm.recipe": config.recipe, "d2sm.folder": folder.place}
    if "fingerprint" in known:
        tags["d2sm.data"] = str(known["fingerprint"])
    if started_from := initial.note(config, folder):
        tags["d2sm.init"] = started_from
    if config.tracking.parent:
        tags["mlflow.parentRunId"] = config.tracking.parent
    run = tracking.open_run(config, run_dir=folder.path, tags=tags, run_id=known.get("run_id"), uri=uri)
    note(folder, run)
    return run


def note(folder: RunFolder, run: tracking.Run) -> None:
    """Note in a run's folder which MLflow run is its own, and in which store."""
    folder.write_info(run_id=run.id, page=run.page, **{location.ENTRY: location.recorded(run.uri, folder)})


def untracked(run: tracking.Run, folder: RunFolder) -> str:
    """What MLflow lacks of a run that has ended, and what to do, on one line; "" if it has everything."""
    lacks = [run.refused] if run.refused else []
    if run.unsent:
        why = f" ({run.away})" if run.away else ""
        waiting = f"{run.unsent} records wait in {folder.place} for MLflow{why}"
        lacks.append(f"{waiting}; the same command sends them once it answers")
    return "; ".join(lacks)


def send_waiting(folder: RunFolder, uri: str) -> str:
    """Send what MLflow did not take when a run ended; gives what it still lacks, see `untracked`.

    Args:
        uri: of the store.
    """
    if not (folder.path / outbox.UNSENT).exists():
        return ""
    info = folder.read_info()
    try:
        with folder.owned():
            with tracking.reopen(
                info.get("run_id", ""),
                uri=uri,
                run_dir=folder.path,
                page=info.get("page", ""),
                step=info.get("evaluated", 0),
            ) as run:
                stage(f"sending MLflow what it lacks of {folder.path.name}")
            return untracked(run, folder)
    except (tracking.TrackingError, InUseError) as error:
        return one_line(error)
