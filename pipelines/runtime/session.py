"""Starting or joining Ray, quietly, with the settings that today's versions need (each says why)."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import ray

from pipelines.runtime import auth, private

ENVIRONMENT = {
    # A report blocks until the controller polls; at the default of 2 s every report would cost that.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Seconds to find places for the workers. After a node was lost, Ray's first try still counts on it.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TQDM": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray would otherwise hide the GPUs of tasks that ask for none, and warn about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers change their folder to a temporary one by default, where relative paths mean something else.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
# On one machine: nobody takes nodes away, and there is no dashboard to show the gauges. Saves processes at each start.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


def start(*, cpus: float, verbose: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine; does nothing when Ray is already up.

    Args:
        cpus: CPUs that will be reserved. On this machine alone, up to twice its cores are handed out: a reservation
            is no more than a number, and ingest and training take turns.
        verbose: let Ray's own log and warnings through.

    Raises:
        AuthError: RAY_ADDRESS cannot be joined, or is another machine's and Ray's token authentication is off.
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
        try:
            ray.init(**options)
        except ConnectionError:
            raise auth.AuthError(
                f"RAY_ADDRESS={address}: cannot be joined; is it up? And if it asks for Ray's token, is that here, "
                "with RAY_AUTH_MODE=token?"
            ) from None
        return
    for name, value in ALONE.items():
        options["runtime_env"]["env_vars"][name] = os.environ.setdefault(name, value)
    cores = os.cpu_count() or 1
    logical = max(cores, min(math.ceil(cpus), 2 * cores))
    ray.init(address="local", num_cpus=logical, include_dashboard=False, **options)


def quiet(*, verbose: bool = False) -> None:
    """Set the environment that Ray reads, and its loggers, in this process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come as exceptions, which are shown


def cause(error: BaseException) -> BaseException:
    """The innermost reason of an error that crossed processes."""
    inner = next(private.wrapped(error), None)
    return error if inner is None else cause(inner)
