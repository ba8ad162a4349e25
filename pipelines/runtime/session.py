"""Starting or joining Ray with the settings that this project needs, and without its own log."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import ray

from pipelines.runtime import auth, private
from pipelines.runtime.progress import stage
from pipelines.text import redact

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
# On a single machine no node can be preempted, and no dashboard shows Ray Train's metrics: two processes less.
SINGLE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


def start(*, cpus: float, verbose: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or else start Ray on this machine; does nothing if Ray is up already.

    Args:
        cpus: CPUs that will be reserved. Ray on this machine is started with as many, up to twice the cores: a
            reservation is only a number, and ingest and training take turns.
        verbose: show Ray's own log and warnings.

    Raises:
        AuthError: RAY_ADDRESS cannot be joined, or is on another machine while Ray's token authentication is off.
    """
    quiet(verbose=verbose)
    if ray.is_initialized():
        return
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": "INFO" if verbose else "ERROR",
        "runtime_env": {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}},
    }
    if address := os.environ.get("RAY_ADDRESS"):
        auth.check_join(address)
        stage(f"joining the Ray cluster at {redact(address)}")
        try:
            ray.init(**options)
        except ConnectionError:
            raise auth.AuthError(
                f"RAY_ADDRESS={address}: cannot be joined; make sure that it is up and, if it requires Ray's token, "
                "that the token is here and RAY_AUTH_MODE=token is set"
            ) from None
        return
    for name, value in SINGLE_MACHINE.items():
        options["runtime_env"]["env_vars"][name] = os.environ.setdefault(name, value)
    cores = os.cpu_count() or 1
    logical = max(cores, min(math.ceil(cpus), 2 * cores))
    stage("starting Ray on this machine")
    ray.init(address="local", num_cpus=logical, include_dashboard=False, **options)


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
