"""Starting or joining Ray with the settings that this project needs, and without its own log."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.job_config import JobConfig

from pipelines.runtime import auth, files, leaving, private
from pipelines.runtime.cores import logical_cpus
from pipelines.runtime.progress import stage
from pipelines.text import one_line, redact

ENVIRONMENT = {
    # A report to Ray Train waits until its controller polls the workers, by default every 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Seconds to place the workers before Ray tries again. After a node is lost, its first try still counts on it.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TQDM": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray would otherwise hide the GPUs from tasks that reserve none, and warn about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers would otherwise run in a temporary folder, where relative paths mean something else.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_RAY_STOPS = 2**20  # bytes: with less, a process of Ray that prints a line fails
_RAY_NEEDS = 2**25  # bytes of Ray's temporary folder: a run of minutes writes 4 MiB of logs
# On a single machine no node can be preempted, and no dashboard shows Ray Train's metrics: two processes less.
SINGLE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


_OWN = {"d2sm-started": "true"}  # label of the node of a Ray that `start` has started
_OWN_PROCESSES = ("gcs_server", "raylet")  # what Ray cannot go on without, as children of the process that started it
_HEAD_PATIENCE = 30.0  # seconds without an answer from a cluster's head; after 60 Ray ends the process
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a path


_begun: Future[None] | None = None  # the start of Ray that `begin` has begun; None once `start` has waited for it


class SessionError(ValueError):
    """Ray cannot be started on this machine. One line."""


def begin(*, cpus: float, verbose: bool = False) -> None:
    """Begin to start Ray on this machine, so that it starts beside what comes before `start`, which waits for it.

    For the command line alone, whose process ends at once where `start` is not reached (see `leaving.starting`).
    Does nothing elsewhere, nor if Ray is up or at RAY_ADDRESS.

    Args:
        cpus, verbose: as for `start`.
    """
    global _begun
    if not leaving.active() or ray.is_initialized() or _begun or os.environ.get("RAY_ADDRESS", "").strip():
        return
    _begun = begun = Future[None]()

    def run() -> None:
        try:
            _start(cpus, verbose)
            begun.set_result(None)
        except BaseException as error:
            begun.set_exception(error)
        threading.Event().wait()  # Linux ends Ray's processes with the thread that has started them

    leaving.starting(True)
    quiet(verbose=verbose)
    threading.Thread(target=run, name="start Ray", daemon=True).start()


def start(*, cpus: float, verbose: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or else start Ray on this machine; does nothing if Ray is up already.

    Args:
        cpus: CPUs that will be reserved. Ray on this machine is started with as many, up to twice the cores.
        verbose: show Ray's own log and warnings.

    Raises:
        AuthError: RAY_ADDRESS does not answer or cannot be joined, or listens beyond loopback while Ray's token
            authentication is off.
        SessionError: Ray's temporary folder cannot be used; Ray cannot be started.
    """
    global _begun
    quiet(verbose=verbose)
    if _begun is not None:
        _begun.result()
        _begun = None
        leaving.starting(False)
    elif ray.is_initialized():
        return
    else:
        _start(cpus, verbose)
    leaving.take_signals()
    if leaving.active():
        _watch()


def _start(cpus: float, verbose: bool) -> None:
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": "INFO" if verbose else "ERROR",
        "job_config": private.import_as_here(JobConfig()),
    }
    if address := os.environ.get("RAY_ADDRESS", "").strip():
        _check_cluster(address)
        stage(f"joining the Ray cluster at {redact(address)}")
        try:
            ray.init(runtime_env={"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}, **options)
        except (ConnectionError, ray.exceptions.AuthenticationError):
            raise auth.AuthError(
                f"RAY_ADDRESS={address}: cannot be joined; make sure that it is up and, if it requires Ray's token, "
                "that the token is here and RAY_AUTH_MODE=token is set"
            ) from None
        return
    # The processes of this Ray inherit these. With a `runtime_env` instead, no task or actor could begin in one of the
    # processes that Ray keeps ready, and each of its own would be started twice.
    for name, value in SINGLE_MACHINE.items():
        os.environ.setdefault(name, value)
    _check_temporary_folder()
    private.stay_on_loopback()
    if auth.secured() or "RAY_AUTH_MODE" not in os.environ:
        auth.make_token()
    stage("starting Ray on this machine")
    try:
        ray.init(address="local", num_cpus=logical_cpus(cpus), include_dashboard=False, labels=_OWN, **options)
    except Exception as error:  # Ray raises what it likes, such as an Exception where its processes took over 30 s
        raise SessionError(
            f"Ray cannot be started on this machine ({one_line(error)}); see whether it is overloaded, or short of "
            "memory or disk space, and try again"
        ) from error


def started_here() -> bool:
    """Whether the Ray that is up was started by `start`, for one process and without a dashboard. Workers know it too.

    Ray's State API asks a dashboard: for a Ray without one, that of another cluster on the machine.
    """
    return any(node["Labels"].items() >= _OWN.items() for node in ray.nodes())


def _watch() -> None:
    """Leave this process when Ray is lost; Ray itself would end it after a minute with words of its own."""
    own = [(each, each.name()) for each in psutil.Process().children() if each.name() in _OWN_PROCESSES]
    address = str(ray.get_runtime_context().gcs_address)

    def ended() -> str:
        for process, name in own:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            return f"Ray on this machine has ended (its process {name}: killed, or out of memory); {leaving.KEPT}"
        return ""

    def away() -> str:
        since = time.monotonic()
        while time.monotonic() - since < _HEAD_PATIENCE:
            if not auth.trouble(address, 2.0):
                return ""
            time.sleep(1.0)
        return f"the head of the Ray cluster at {address} has not answered for {_HEAD_PATIENCE:.0f} s; {leaving.KEPT}"

    def watch() -> None:
        while True:
            time.sleep(1.0 if own else 5.0)
            if not ray.is_initialized():
                return
            if (reason := ended() if own else away()) and ray.is_initialized():
                leaving.lose(reason)
                return

    thread = threading.Thread(target=watch, name="watch Ray", daemon=True)
    thread.start()


def _check_cluster(address: str) -> None:
    if address == "local":
        return
    found = private.cluster_on_this_machine() if address == "auto" else address
    if found is None:
        raise auth.AuthError(
            "RAY_ADDRESS=auto: no Ray cluster runs on this machine; start one, or unset RAY_ADDRESS to use Ray on this "
            "machine alone"
        )
    auth.check_address(found)


def _check_temporary_folder() -> None:
    """Ray keeps its sockets in this folder, and the path of a socket has a limit that Ray meets only while it starts.

    Raises:
        SessionError: the path is too long, the folder cannot be made or written to, or its disk is full: Ray would wait
            for its own processes, silently.
    """
    name, folder = _temporary_folder()
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    length = len(os.fsencode(folder / session / "sockets" / "plasma_store"))
    if length > _LONGEST_SOCKET:
        raise SessionError(
            f"{name}={folder.parent}: {length - _LONGEST_SOCKET} characters too long for the paths of Ray's sockets; "
            f"set RAY_TMPDIR to a folder with at most {len(os.fsencode(folder.parent)) - length + _LONGEST_SOCKET}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".d2sm-{os.getpid()}"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise SessionError(
            f"{name}={folder.parent}: Ray cannot keep its files there ({error.strerror or one_line(error)}); set "
            "RAY_TMPDIR to a folder that can be written"
        ) from None
    if shutil.disk_usage(folder).free < _RAY_NEEDS:
        raise SessionError(
            f"{name}={folder.parent}: {files.free(folder)}, and Ray's own files need {_RAY_NEEDS >> 20} MiB; free some "
            "space, or set RAY_TMPDIR to a folder on another disk"
        )


def full_disk() -> str:
    """That Ray on this machine has no space left for its own files, and what helps, on one line; "" if it has."""
    if os.environ.get("RAY_ADDRESS", "").strip():
        return ""
    name, folder = _temporary_folder()
    try:
        if shutil.disk_usage(folder).free >= _RAY_STOPS:
            return ""
    except OSError:  # it is gone, and Ray ends
        return ""
    return (
        f"{name}={folder.parent}: {files.free(folder)}, and Ray's processes fail without; free some space and the run "
        "goes on, or end it (Ctrl-C twice) and set RAY_TMPDIR to a folder on another disk"
    )


def _temporary_folder() -> tuple[str, Path]:
    """Where Ray on this machine keeps its own files, and the variable that says so."""
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)  # as Ray looks
    name = next((name for name in names if os.environ.get(name)), names[0])
    return name, Path(os.environ.get(name) or "/tmp").absolute() / "ray"


def quiet(*, verbose: bool = False) -> None:
    """Set the environment variables that Ray reads in this process and, unless verbose, silence its loggers."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised too


def cause(error: BaseException) -> BaseException:
    """The error that an error of Ray's was raised for, through all the layers that Ray wraps around it."""
    inner = next(private.wrapped(error), None)
    return error if inner is None else cause(inner)
