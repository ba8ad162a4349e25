"""The MLflow store of a run on disk: written down in its run.json, and found again from there.

A run's folder may be moved together with its database, or looked at from another folder, so run.json keeps the path of
a database relative to the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.config import Config
from pipelines.runs.folder import RunFolder
from pipelines.runtime import private
from pipelines.text import listed, redact
from pipelines.tracking import store
from pipelines.tracking.run import deleted_line
from pipelines.tracking.store import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENTRY = "store"  # of run.json
_ABOVE = 3  # folders above the run's in which the database of an earlier version is looked for


class Found(NamedTuple):
    """A run's store. `away` says why it does not answer now; "" if it does and has the run."""

    uri: str
    away: str


def recorded(uri: str, folder: RunFolder) -> str:
    """The URI as run.json keeps it; "" for one that holds a secret."""
    path = store.sqlite_file(uri)
    if redact(uri) != uri:
        return ""
    return f"sqlite:///{os.path.relpath(path, folder.path)}" if path and not folder.uri else uri


def find(folder: RunFolder, config: Config, *, asked: str = "") -> Found:
    """The store that holds the MLflow run of a run's folder. Nothing is made there.

    Args:
        config: of the run.
        asked: the URI that the user gave for now; "": the store is found from the run.

    Raises:
        TrackingError: the one asked for does not answer; or none holds the run. One line with the remedy.
    """
    run_id, tried = _run_id(folder), list[str]()
    for uri in [store.absolute(asked)] if asked else dict.fromkeys(_candidates(folder, config)):
        path = store.sqlite_file(uri)
        if path and not path.is_file():
            if asked and run_id is None:  # the run gets a record where the user wants it
                return Found(uri, "")
            tried.append(f"{redact(uri)} (no such file)")
            continue
        if path:
            # A look without MLflow, which would make its tables in whatever database a run.json names.
            stage = private.database_run(path, run_id)
            if run_id and stage == "deleted":
                raise TrackingError(f"{deleted_line(run_id, uri, folder.path)}, or give --out FILE")
            if stage:
                return Found(uri, "")
            tried.append(redact(uri))
            continue
        try:
            client = store.prepare(uri)
        except TrackingError as error:
            if asked:
                raise
            return Found(uri, str(error))
        if run_id is None or holds(client, run_id, uri):
            return Found(uri, "")
        tried.append(redact(uri))
    if run_id is None:
        return Found(store.uri_of(config.replace({"train.storage": str(folder.path.parent)})), "")
    raise TrackingError(
        f"{folder.place}: its MLflow run {run_id} is not in {listed(tried, 4)}; give the store that has it, "
        "tracking.uri=sqlite:///<folder>/mlflow.db or a server's address, or --out FILE to leave MLflow alone"
    )


def likely(folder: RunFolder, config: Config) -> str:
    """The URI of a run's store, as far as it is known without asking a server.

    Raises:
        TrackingError: the run names none, and the configuration none that can be used.
    """
    run_id = _run_id(folder)
    for uri in _candidates(folder, config):
        path = store.sqlite_file(uri)
        if path is None or private.database_run(path, run_id):
            return uri
    return store.uri_of(config)


def holds(client: MlflowClient, run_id: str, uri: str) -> bool:
    """Whether a store has a run that is not deleted.

    Raises:
        TrackingError: the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    with store.plain_errors(uri, TrackingError):
        try:
            return bool(client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise


def _run_id(folder: RunFolder) -> str | None:
    found = folder.read_info().get("run_id")
    return str(found) if found else None


def _candidates(folder: RunFolder, config: Config) -> Iterator[str]:
    """Where a run's store may be, the likeliest first: as recorded, as configured, from the environment, beside it."""
    record = str(folder.read_info().get(ENTRY, ""))
    relative = store.sqlite_file(record) if record else None
    if relative is not None:
        yield store.sqlite_uri(os.path.normpath(folder.path / relative), asked_by=str(folder.info_file))
    elif record:
        yield store.absolute(record, asked_by=str(folder.info_file))
    configured = store.sqlite_file(config.tracking.uri)
    if config.tracking.uri and (configured is None or configured.is_absolute()):
        yield store.absolute(config.tracking.uri)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield store.uri_of(Config())
    for above in Path(os.path.abspath(folder.path)).parents[:_ABOVE]:
        if (above / "mlflow.db").is_file():
            yield store.sqlite_uri(above / "mlflow.db", asked_by=folder.place)
