"""The one writer of MLflow runs. It lives in the driver; Ray's workers never import mlflow.

    with open_run(config, run_dir=folder, tags={}) as run:
        run.log(step, {"loss": 0.1})

A run ends as FINISHED, FAILED (an exception) or KILLED (Ctrl-C). Its id is what continues it later.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from pipelines.config import Config
from pipelines.runtime import private
from pipelines.text import one_line, redact
from pipelines.tracking import store
from pipelines.tracking.outbox import Item, Outbox, Refused
from pipelines.tracking.store import TrackingError, ui_command, uri_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Record

__all__ = ["Run", "TrackingError", "commit", "open_run", "provenance", "settle", "ui_command", "uri_of"]

Status = Literal["FINISHED", "FAILED", "KILLED"]

COMMIT = "COMMIT"
_LONGEST = 6000  # characters MLflow keeps of a parameter; it cuts the rest off
_NAME = re.compile(r"[\w\-. :/]{1,250}")
_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")  # trying again is no use


def open_run(
    config: Config, *, run_dir: Path, tags: Mapping[str, str], run_id: str | None = None, whole: bool = True
) -> Run:
    """Create the MLflow run of a training, or continue one.

    Args:
        config: all its keys become parameters; the file becomes the artifact config.yaml.
        run_dir: the run's folder: its name names the run, and it keeps what could not be sent.
        tags: more tags, set as they are.
        run_id: of the run to continue; it is RUNNING again, and steps it has are not logged twice.
        whole: False for a run that stands for several trainings: the configuration says where, not what.

    Raises:
        TrackingError: when the store does not answer, the run is not in it, or a value is too long.
    """
    params = _params(config) if whole else {}
    uri = uri_of(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    client = store.prepare(uri)
    with store.plain_errors(uri, TrackingError):
        if run_id is None:
            experiment = experiment_of(client, config.tracking.experiment, uri)
            record = client.create_run(experiment, run_name=run_dir.name)
        else:
            record = _continued(client, run_id, uri, run_dir)
        changed = _log_params(client, record, params)
    run = Run(client, record, uri=uri, run_dir=run_dir)
    for key, value in {**provenance(), **changed, **tags}.items():
        run.tag(key, value)
    if whole:
        run.text(redact(config.dumps()), "config.yaml")
    return run


def settle(uri: str, ends: Mapping[str, Status], tags: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Say how runs ended whose process cannot: one that died still says that it is running.

    Args:
        uri: of the store.
        ends: by run id; a run that has ended otherwise stays as it is.
        tags: by run id, set in any case.

    Raises:
        TrackingError: when the store does not answer.
    """
    client = store.prepare(uri)
    with store.plain_errors(uri, TrackingError):
        for run_id, status in ends.items():
            for key, value in (tags or {}).get(run_id, {}).items():
                client.set_tag(run_id, key, value)
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, status)


class Run:
    """One MLflow run. Every call but `flush` and `finish` returns at once; a thread does the sending.

    Attributes:
        id: MLflow's run id.
        uri: of the store, with its password: log `redact(uri)` only.
        page: path of the run in MLflow's pages, after the address of the server.
        last_step: the newest step that has metrics, 0 for none; `results` stand there.
    """

    def __init__(self, client: MlflowClient, record: Record, *, uri: str, run_dir: Path) -> None:
        self.id, self.uri = record.info.run_id, uri
        self.page = f"#/experiments/{record.info.experiment_id}/runs/{self.id}"
        self._client = client
        self._finished = False
        self._last = private.newest_steps(record)
        self._system_step = max((s for key, s in self._last.items() if key.startswith("system/")), default=-1)
        self._outbox = Outbox(self._send, run_dir)
        for item in self._outbox.waiting:
            if item["kind"] == "metric":
                self._last[item["key"]] = max(self._last.get(item["key"], 0), item["step"])
        self._stop = threading.Event()
        threading.Thread(target=self._system, name="system metrics", daemon=True).start()

    @property
    def last_step(self) -> int:
        return max((step for key, step in self._last.items() if not key.startswith("system/")), default=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue metrics of a step. A metric that has this step or a later one is left out: it was resumed.

        Raises:
            TrackingError: on a name that MLflow does not take.
        """
        fresh = {key: value for key, value in metrics.items() if step > self._last.get(key, -1)}
        self._put(step, fresh)
        self._last.update(dict.fromkeys(fresh, step))

    def results(self, results: Mapping[str, float]) -> None:
        """Queue final numbers such as psnr.sigma25, at the last step; later ones replace them."""
        step = self.last_step
        self._put(step, results)
        self._last.update(dict.fromkeys(results, step))

    def tag(self, key: str, value: str) -> None:
        """Queue a tag; a password in a URI is left out."""
        self._outbox.put([{"kind": "tag", "key": key, "value": redact(str(value))}])

    def file(self, path: Path, folder: str = "") -> None:
        """Queue a copy of a file as an artifact in `folder`."""
        copy = self._outbox.stage(path.name)
        shutil.copyfile(path, copy)
        self._artifact(copy, folder)

    def text(self, text: str, name: str) -> None:
        """Queue a text as the artifact `name`, which may hold folders."""
        folder, _, last = name.rpartition("/")
        path = self._outbox.stage(last)
        path.write_text(text)
        self._artifact(path, folder)

    def picture(self, picture: Any, name: str) -> None:
        """Queue a picture as the PNG artifact `name`: a file's path, or uint8 or [0, 1] float (H, W[, 3])."""
        folder, _, last = name.rpartition("/")
        path = self._outbox.stage(last)
        if isinstance(picture, (str, Path)):
            shutil.copyfile(picture, path)
        else:
            import numpy as np
            from PIL import Image

            pixels = np.asarray(picture)
            if pixels.dtype != np.uint8:
                pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(path)
        self._artifact(path, folder)

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits, for at most `timeout` seconds; whether all of it is sent."""
        return self._outbox.flush(timeout)

    def finish(self, status: Status = "FINISHED", *, timeout: float | None = None) -> None:
        """End the run; a second call does nothing.

        What a dead server does not take within `timeout` (none: 60 s, 15 s after a failure) is kept in the
        run folder, said in one line, and sent when the run is started again.
        """
        if self._finished:
            return
        self._finished = True
        self._stop.set()
        self._outbox.put([{"kind": "status", "value": status}])
        self._outbox.close(timeout if timeout is not None else 60.0 if status == "FINISHED" else 15.0)

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
        now = time.time_ns() // 1_000_000  # taken here: a repeated sending is then the same point to MLflow
        items: list[Item] = []
        for key, value in metrics.items():
            if not _NAME.fullmatch(key):
                raise TrackingError(f"metric {key!r}: MLflow takes letters, digits, and _ - . : / in a name")
            items.append({"kind": "metric", "key": key, "value": float(value), "step": step, "timestamp": now})
        self._outbox.put(items)

    def _artifact(self, copy: Path, folder: str) -> None:
        self._outbox.put([{"kind": "artifact", "path": str(copy.absolute()), "folder": folder}])

    def _send(self, batch: list[Item]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            store.check(self.uri, timeout=3.0)  # finds a dead server sooner than MLflow's retries do
            self._request(batch)
        except MlflowException as error:
            text = one_line(error)
            raise (Refused if error.error_code in _FINAL else TrackingError)(text) from None
        except Exception as error:
            raise TrackingError(one_line(error)) from None

    def _request(self, batch: list[Item]) -> None:
        from mlflow.entities import Metric, RunTag

        first = batch[0]
        if first["kind"] == "status":
            self._client.set_terminated(self.id, first["value"])
        elif first["kind"] == "artifact":
            path = Path(first["path"])
            if not path.exists():
                raise Refused(f"{path} is gone")
            self._client.log_artifact(self.id, str(path), first["folder"] or None)
            shutil.rmtree(path.parent)
        else:
            metrics = [
                Metric(item["key"], item["value"], item["timestamp"], item["step"])
                for item in batch
                if item["kind"] == "metric"
            ]
            tags = [RunTag(item["key"], item["value"]) for item in batch if item["kind"] == "tag"]
            self._client.log_batch(self.id, metrics=metrics, tags=tags)

    def _system(self) -> None:
        """Log what this machine does, until the run is finished."""
        seconds, read = private.system_gauges(self.id, self.uri)
        step = self._system_step
        while not self._stop.wait(seconds):
            step += 1
            self._put(step, {f"system/{key}": value for key, value in read().items()})


def commit() -> tuple[str, bool]:
    """The git commit of this code and whether files differ from it; ("", False) outside its own checkout.

    Code that was sent with a job has no git; there it stands in a file beside it.
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
    """The tags that say which code made a run; none outside its own checkout."""
    revision, dirty = commit()
    return {"mlflow.source.git.commit": revision, "d2sm.dirty": str(dirty).lower()} if revision else {}


def _params(config: Config) -> dict[str, str]:
    """Dotted key -> value, written as an override on the command line takes it back."""
    params = {}
    for key, value in config.flat().items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _LONGEST:
            raise TrackingError(
                f"{key}: {len(text)} characters; MLflow keeps {_LONGEST} of a parameter, give a shorter value"
            )
        params[key] = redact(text)
    return params


def experiment_of(client: MlflowClient, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    path = store.sqlite_file(uri)
    # Beside the database, not in the folder the process happens to run in. A server chooses for itself.
    place = (path.parent / "mlartifacts").as_uri() if path else None
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking.experiment={name}: deleted in {redact(uri)}; give another name, or restore it: "
                f"`mlflow experiments restore -x {found.experiment_id}`"
            )
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was quicker
            return str(found.experiment_id)
        raise


def _continued(client: MlflowClient, run_id: str, uri: str, run_dir: Path) -> Record:
    from mlflow.exceptions import MlflowException

    try:
        record = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        record = None
    if record is None or record.info.lifecycle_stage != "active":
        raise TrackingError(
            f"{redact(uri)}: holds no run {run_id}, which {run_dir} was logged to; "
            f"give the store it was logged to with tracking.uri, or start under another train.name"
        )
    client.update_run(run_id, status="RUNNING")
    return record


def _log_params(client: MlflowClient, record: Record, params: Mapping[str, str]) -> dict[str, str]:
    """Log the parameters the run lacks. MLflow cannot change the others: what differs comes back as a tag."""
    from mlflow.entities import Param

    old = record.data.params
    missing = [Param(key, value) for key, value in params.items() if key not in old]
    for start in range(0, len(missing), 100):
        client.log_batch(record.info.run_id, params=missing[start : start + 100])
    changed = [f"{key}={value}" for key, value in params.items() if old.get(key, value) != value]
    return {"d2sm.changed": " ".join(changed)} if changed else {}
