"""Writing an MLflow run. The driver is its only writer; Ray's workers never import mlflow.

    with open_run(config, run_dir=folder, tags={}) as run:
        run.log(step, {"loss": 0.1})

A run ends as FINISHED, FAILED (an exception) or KILLED (Ctrl-C). Given its id, it can be continued.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from d2sm import __version__
from pipelines.config import Config
from pipelines.runs.names import INFO
from pipelines.runtime import files, private
from pipelines.text import one_line, redact
from pipelines.tracking import outbox, store
from pipelines.tracking.outbox import Gone, Item, Outbox, Refused
from pipelines.tracking.store import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

Status = Literal["FINISHED", "FAILED", "KILLED"]

COMMIT = "COMMIT"  # file beside code that has no git: commit and "dirty"
_PARAM_LENGTH = 6000  # characters that MLflow keeps of a parameter
_TAKEN_BACK = ("d2sm.changed", "d2sm.stopped_early")  # tags of a former start, written anew if they still hold
_METRIC_NAME = re.compile(r"[\w\-. :/]{1,250}")
_PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")  # errors that no retry changes


def open_run(
    config: Config,
    *,
    run_dir: Path,
    tags: Mapping[str, str],
    run_id: str | None = None,
    log_config: bool = True,
    uri: str | None = None,
) -> Run:
    """Create an MLflow run, or continue one.

    Args:
        config: its keys become the run's parameters and its file the artifact config.yaml; its tracking section says
            where the run is kept.
        run_dir: the run's folder. Its name names the MLflow run, and what could not be sent is kept in it.
        tags: further tags.
        run_id: of the run to continue. It is RUNNING again, and the steps that it has are not logged twice. None: a
            new one; what was queued in the folder for another is removed.
        log_config: False for a run that stands for several trainings: neither parameters nor config.yaml.
        uri: of the store, absolute; None: that of the configuration.

    Raises:
        TrackingError: the store does not answer, the run is not in it, or a value is too long.
    """
    params = _params(config) if log_config else {}
    uri = uri or store.uri_of(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    client = store.prepare(uri)
    with store.plain_errors(uri, TrackingError):
        changed = dict[str, str]()
        if run_id is None:
            found = client.create_run(experiment_of(client, config.tracking.experiment, uri), run_name=run_dir.name)
            outbox.discard(run_dir)  # records of another run: an attempt that began anew, or a run that was deleted
        else:
            found = _continued(client, run_id, uri, run_dir)
            changed = {tag: "" for tag in _TAKEN_BACK if log_config and found.data.tags.get(tag)}
        changed |= _log_params(client, found, params)
    run = Run(found.info.run_id, client, found, uri=uri, run_dir=run_dir)
    for key, value in {**provenance(), **changed, **tags}.items():
        run.tag(key, value)
    if log_config:
        run.text(redact(config.dumps()), "config.yaml")
    return run


def reopen(run_id: str, *, uri: str, run_dir: Path, page: str, step: int) -> Run:
    """A run that has ended, to add numbers and files to it: its status, its parameters and its commit stay.

    A status that could not be sent when the run ended is sent too. While the store does not answer, what is added waits
    in the run's folder. It is sent when the run is opened again.

    Args:
        run_dir: the run's folder.
        page: the run's, for as long as the store does not answer.
        step: of what is added, likewise.

    Raises:
        TrackingError: the store has no such run.
    """
    try:
        client = store.prepare(uri)
    except TrackingError as error:
        return Run(run_id, None, None, uri=uri, run_dir=run_dir, ended=True, page=page, step=step, away=str(error))
    with store.plain_errors(uri, TrackingError):
        found = _found(client, run_id, uri, run_dir)
    return Run(run_id, client, found, uri=uri, run_dir=run_dir, ended=True)


def end_runs(uri: str, statuses: Mapping[str, Status], tags: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Set how runs ended whose own process died: the store still has them as RUNNING.

    Args:
        uri: of the store.
        statuses: by run id. The status of a run that is not RUNNING stays as it is.
        tags: by run id; set in any case.

    Raises:
        TrackingError: the store does not answer.
    """
    client = store.prepare(uri)
    with store.plain_errors(uri, TrackingError):
        for run_id, status in statuses.items():
            for key, value in (tags or {}).get(run_id, {}).items():
                client.set_tag(run_id, key, value)
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, status)


class Run:
    """One MLflow run. Every call but `flush` and `finish` returns at once: a thread of its own sends.

    Attributes:
        id: MLflow's run id.
        uri: of the store, with its password: show `redact(uri)` only.
        page: path of the run in MLflow's pages, to be appended to the server's address.
        last_step: the newest step that has metrics, 0 if none; `results` are logged at it.
        away: why the store did not answer when the run was opened; "" if it did.
        unsent: how many records could not be sent, once the run is finished.
        refused: what MLflow will never take, on one line (see `Outbox.refused`); "" if it is nothing.
    """

    def __init__(
        self,
        run_id: str,
        client: MlflowClient | None,
        found: MlflowRun | None,
        *,
        uri: str,
        run_dir: Path,
        ended: bool = False,
        page: str = "",
        step: int = 0,
        away: str = "",
    ) -> None:
        """See `open_run` and `reopen`. Without a client and the run it found, the store does not answer now."""
        self.id, self.uri, self.away, self.unsent = run_id, uri, away, 0
        self.page = f"#/experiments/{found.info.experiment_id}/runs/{run_id}" if found else page
        self._client, self._run_dir, self._ended = client, run_dir, ended
        self._finished = False
        self._newest = private.newest_steps(found) if found else {"": step}  # metric -> its newest step
        system_steps = [step for key, step in self._newest.items() if key.startswith("system/")]
        self._system_step = max(system_steps, default=-1)
        self._outbox = Outbox(self._send, run_dir, ended=ended)
        for item in self._outbox.waiting:
            if item["kind"] == "metric":
                self._newest[item["key"]] = max(self._newest.get(item["key"], 0), item["step"])
        self._stop = threading.Event()
        if not ended:
            threading.Thread(target=self._log_system_metrics, name="system metrics", daemon=True).start()

    @property
    def last_step(self) -> int:
        return max((step for key, step in self._newest.items() if not key.startswith("system/")), default=0)

    @property
    def refused(self) -> str:
        return self._outbox.refused

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step, but for those that have this step or a later one already, as after resuming.

        Raises:
            TrackingError: MLflow does not take this name of a metric.
        """
        fresh = {key: value for key, value in metrics.items() if step > self._newest.get(key, -1)}
        self._put(step, fresh)
        self._newest.update(dict.fromkeys(fresh, step))

    def results(self, results: Mapping[str, float]) -> None:
        """Queue final numbers such as psnr.sigma25, at the last step; later ones replace them."""
        step = self.last_step
        self._put(step, results)
        self._newest.update(dict.fromkeys(results, step))

    def tag(self, key: str, value: str) -> None:
        """Queue a tag, without the password of a URI in it."""
        self._outbox.put([{"kind": "tag", "key": key, "value": redact(str(value))}])

    def file(self, path: Path, folder: str = "") -> None:
        """Queue a copy of a file as an artifact in `folder`; the file itself may be changed or removed afterwards."""
        copy = self._outbox.stage(path.name)
        with files.naming(copy):
            if path.suffix in (".yaml", ".json", ".txt"):  # earlier versions wrote the password of tracking.uri into it
                copy.write_bytes(redact(path.read_text(errors="surrogateescape")).encode(errors="surrogateescape"))
            else:
                shutil.copyfile(path, copy)
        self._outbox.put([{"kind": "artifact", "path": str(copy.absolute()), "folder": folder}])

    def text(self, text: str, name: str) -> None:
        """Queue a text as the artifact `name`, such as "notes/hello.txt"."""
        folder, _, last = name.rpartition("/")
        path = self._outbox.stage(last)
        with files.naming(path):
            path.write_text(text, encoding="utf-8")
        self._outbox.put([{"kind": "artifact", "path": str(path.absolute()), "folder": folder}])

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait at most `timeout` seconds until everything queued is sent; gives whether it is."""
        return self._outbox.flush(timeout)

    def finish(self, status: Status = "FINISHED", *, timeout: float | None = None) -> None:
        """End the run; a second call does nothing. A run that was opened by `reopen` gets no new status.

        What the server does not take within `timeout` seconds (None: 60, after a failure 15) is kept in the run's
        folder, as a warning says, and sent when the run is continued.
        """
        if self._finished:
            return
        self._finished = True
        self._stop.set()
        if not self._ended:
            self._outbox.put([{"kind": "status", "value": status}])
        patience = 2.0 if self.away else 60.0 if status == "FINISHED" else 15.0
        self.unsent = self._outbox.close(patience if timeout is None else timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _put(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.time_ns() // 1_000_000  # set here: what is sent twice is then the same point to MLflow
        items: list[Item] = []
        for key, value in metrics.items():
            if not _METRIC_NAME.fullmatch(key):
                raise TrackingError(f"metric {key!r}: MLflow takes letters, digits, and _ - . : / in a name")
            if not math.isfinite(value):  # a chart draws none, and JSON has none
                continue
            items.append({"kind": "metric", "key": key, "value": float(value), "step": step, "timestamp": now})
        self._outbox.put(items)

    def _send(self, batch: list[Item]) -> None:
        """Send metrics and tags together, or one artifact or status, as the outbox hands them over."""
        from mlflow.entities import Metric, RunTag
        from mlflow.exceptions import MlflowException

        first = batch[0]
        try:
            store.check(self.uri, timeout=3.0)  # MLflow's own retries need longer to notice that a server is down
            client = self._client or store.prepare(self.uri)
            if first["kind"] == "status":
                client.set_terminated(self.id, first["value"])
            elif first["kind"] == "artifact":
                client.log_artifact(self.id, first["path"], first["folder"] or None)
            else:
                metrics = [
                    Metric(item["key"], item["value"], item["timestamp"], item["step"])
                    for item in batch
                    if item["kind"] == "metric"
                ]
                tags = [RunTag(item["key"], item["value"]) for item in batch if item["kind"] == "tag"]
                client.log_batch(self.id, metrics=metrics, tags=tags)
        except MlflowException as error:
            if error.error_code not in _PERMANENT:
                raise TrackingError(store.reason(self.uri, str(error))) from None
            raise self._refusal(error) from None
        except Exception as error:
            raise TrackingError(one_line(error)) from None

    def _refusal(self, error: Exception) -> Exception:
        """What a refusal means: the run is gone, the item will never be taken, or the server is away now."""
        try:
            _found(self._client or store.prepare(self.uri), self.id, self.uri, self._run_dir)
        except TrackingError as gone:
            return Gone(str(gone))
        except Exception as away:
            return TrackingError(one_line(away))
        return Refused(one_line(error))

    def _log_system_metrics(self) -> None:
        """Log the load of this machine until the run is finished."""
        seconds, read = private.system_gauges(self.id, self.uri)
        step = self._system_step
        while not self._stop.wait(seconds):
            step += 1
            self._put(step, {f"system/{key}": value for key, value in read().items()})


def commit() -> tuple[str, bool]:
    """The git commit of this code, and whether files differ from it; ("", False) outside its own checkout.

    Code that was sent along with a job has no git; the file `COMMIT` beside it then says so.
    """
    root = Path(__file__).resolve().parents[2]
    if (root / COMMIT).is_file():
        revision, _, state = (root / COMMIT).read_text().partition(" ")
        return revision, state == "dirty"

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/") != root:  # installed inside another repository
            return "", False
        return git("rev-parse", "--verify", "-q", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.TimeoutExpired):
        return "", False


def provenance() -> dict[str, str]:
    """The tags that say which code made a run: its version and, in its own checkout, its commit."""
    revision, dirty = commit()
    checkout = {"mlflow.source.git.commit": revision, "d2sm.dirty": str(dirty).lower()} if revision else {}
    return {"d2sm.version": __version__, **checkout}


def experiment_of(client: MlflowClient, name: str, uri: str) -> str:
    """The id of an experiment, which is made if it does not exist.

    Raises:
        TrackingError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking.experiment={name}: deleted in {redact(uri)}; give another name, or restore it: "
                f"`mlflow experiments restore -x {found.experiment_id}`"
            )
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=store.artifacts_of(uri)))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process has made it in the meantime
            return str(found.experiment_id)
        raise


def _continued(client: MlflowClient, run_id: str, uri: str, run_dir: Path) -> MlflowRun:
    found = _found(client, run_id, uri, run_dir)
    client.update_run(run_id, status="RUNNING")
    return found


def _found(client: MlflowClient, run_id: str, uri: str, run_dir: Path) -> MlflowRun:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = None
    if found is not None and found.info.lifecycle_stage != "active":
        raise TrackingError(deleted_line(run_id, uri, run_dir))
    if found is None:
        raise TrackingError(
            f"{redact(uri)}: holds no run {run_id}, which {run_dir} was logged to; give the store it was logged to "
            f"with tracking.uri, remove {run_dir / INFO} to begin a new MLflow run, or start under another train.name"
        )
    return found


def deleted_line(run_id: str, uri: str, run_dir: Path) -> str:
    """The line on a run that was deleted, with what helps."""
    command = f"MLFLOW_TRACKING_URI={shlex.quote(redact(uri))} {store.mlflow_program()} runs restore --run-id {run_id}"
    return (
        f"{redact(uri)}: the MLflow run {run_id} of {run_dir} was deleted; restore it: `{command}`, or remove "
        f"{run_dir / INFO} to begin a new MLflow run"
    )


def _params(config: Config) -> dict[str, str]:
    """Dotted key -> value, written as the command line takes it."""
    params = {}
    for key, value in config.flat().items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _PARAM_LENGTH:
            raise TrackingError(
                f"{key}: {len(text)} characters; MLflow keeps {_PARAM_LENGTH} of a parameter, give a shorter value"
            )
        params[key] = redact(text)
    return params


def _log_params(client: MlflowClient, found: MlflowRun, params: Mapping[str, str]) -> dict[str, str]:
    """Log the parameters that a run lacks. MLflow cannot change the others: those that differ are returned as a tag."""
    from mlflow.entities import Param

    old = found.data.params
    missing = [Param(key, value) for key, value in params.items() if key not in old]
    for start in range(0, len(missing), 100):
        client.log_batch(found.info.run_id, params=missing[start : start + 100])
    changed = [f"{key}={value}" for key, value in params.items() if old.get(key, value) != value]
    return {"d2sm.changed": " ".join(changed)} if changed else {}
