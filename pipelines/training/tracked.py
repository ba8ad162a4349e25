"""A training's MLflow run."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from types import TracebackType
from typing import Self

from pipelines import tracking
from pipelines.config import Config
from pipelines.runs.folder import RunFolder
from pipelines.runtime.owner import InUseError
from pipelines.runtime.progress import stage
from pipelines.text import one_line
from pipelines.tracking import location, outbox
from pipelines.training import initial

_CLOSING = 2.0  # seconds that Ctrl-C gives a run that is still being opened


class Opening:
    """The MLflow run of a training for the length of a block. That of a new training is opened while its workers start.

        with Opening(config, folder) as opening:
            opening.run.log(step, metrics)

    MLflow's import and the tables of a new database take three seconds. A training that is resumed waits for them,
    because the store may have lost its run. So does one at a URI: the start of its workers brings its folder up to
    date, which may undo what is noted in it meanwhile.

    Where the block ends, the run ends as in `tracking.Run`.

    Raises:
        TrackingError: the store refuses the run; from `run`, `check` and where the block ends.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._opened: Future[tracking.Run] = Future()

        def open_it() -> None:
            try:
                self._opened.set_result(open_run(config, folder))
            except Exception as error:
                self._opened.set_exception(error)

        # Not a daemon: a process that ends waits for it, because a database that is half set up stays broken.
        self._thread = Thread(target=open_it, name="open MLflow run")
        self._waits = "run_id" in folder.read_info() or folder.uri is not None

    @property
    def run(self) -> tracking.Run:
        """The run, as soon as it is opened."""
        return self._opened.result()

    def check(self) -> None:
        """Raise what the store has refused the run for, if it has."""
        if self._opened.done():
            self._opened.result()

    def __enter__(self) -> Self:
        self._thread.start()
        if self._waits:
            self._opened.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            run = self._opened.result(timeout=_CLOSING if interrupted else None)
        except Exception:
            if kind is None:
                raise
            return  # the block has ended for another reason, or for this one
        run.__exit__(kind, error, trace)


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
