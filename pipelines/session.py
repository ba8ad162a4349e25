"""Starting or joining Ray, quietly, with the settings that today's versions need (each says why)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from pipelines import access
from pipelines.config import Config

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


class ResourceError(ValueError):
    """More than the cluster has was asked for. One line."""


def cpus_needed(config: Config, workers: int | None = None) -> float:
    """CPUs that training reserves, those of Ray Data included; without them it would wait for ever.

    Args:
        workers: None: the most. With [least, most] workers ingest reserves nothing (`data.stream`).
    """
    train = config.train
    return (workers or train.workers[1]) * train.cpus_per_worker + (0 if train.elastic else train.data_cpus)


def start(*, cpus: float, verbose: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine; does nothing when Ray is already up.

    Args:
        cpus: CPUs that will be reserved. On this machine alone, up to twice its cores are handed out: a reservation
            is no more than a number, and ingest and training take turns.
        verbose: let Ray's own log and warnings through.

    Raises:
        AccessError: RAY_ADDRESS cannot be joined, or is another machine's and Ray's token authentication is off.
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
        access.check_join(address)
        try:
            ray.init(**options)
        except ConnectionError:
            raise access.AccessError(
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


def capacity() -> dict[str, float]:
    """What Ray has, or would have once its autoscaler has started all the nodes it may start."""
    from ray._private.state import state  # Ray's own trainer asks here; nothing public tells it

    have, most = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    return {name: max(have.get(name, 0), most.get(name, 0)) for name in have.keys() | most.keys()}


def gpu_places(config: Config, gpus: float) -> float:
    """How many workers so many GPUs hold; a worker's share lies on one of them."""
    return gpus * (1 // config.train.gpus_per_worker)


def reserved(config: Config) -> dict[str, float]:
    """What Ray reserves for a worker, by the name of the resource."""
    train = config.train
    return {"CPU": train.cpus_per_worker, **({"GPU": train.gpus_per_worker} if train.use_gpu else {})}


def amounts(of: Mapping[str, float], *, between: str = ", ") -> str:
    """Resources in words."""
    return between.join(f"{amount:g} {name}" for name, amount in of.items())


def room(config: Config) -> str:
    """What the workers ask for and what is free now, in words."""
    each, free = reserved(config), ray.available_resources()
    least, most = config.train.workers
    count = f"{least} to {most}" if config.train.elastic else f"{most}"
    now = {name: free.get(name, 0) for name in each}
    return (
        f"asked for are {count} with {amounts(each, between=' and ')} each, and Ray has "
        f"{amounts(now, between=' and ')} free"
    )


def check(config: Config) -> None:
    """Stop before Ray would wait without a word.

    Raises:
        ResourceError: names what is asked for, what there is, and the keys that change it.
    """
    least, _ = config.train.workers
    have, need = capacity(), cpus_needed(config, least)
    if have.get("CPU", 0) < need:
        raise ResourceError(
            f"train.num_workers={least}: at train.cpus_per_worker={config.train.cpus_per_worker:g}, "
            f"train.data_cpus={config.train.data_cpus:g} training reserves {need:g} CPUs, but Ray has "
            f"{have.get('CPU', 0):g}; lower one of them, or join a larger cluster (RAY_ADDRESS)"
        )
    share = config.train.gpus_per_worker
    if config.train.use_gpu and gpu_places(config, have.get("GPU", 0)) < least:
        raise ResourceError(
            f"train.use_gpu=true: {least} workers need {share:g} GPU each, but Ray has "
            f"{have.get('GPU', 0):g}; lower train.num_workers or train.gpus_per_worker, or say train.use_gpu=false"
        )


def crowded(config: Config) -> str | None:
    """A line where the CPU workers that share a node have more threads than it has cores, which slows them down."""
    if config.train.use_gpu:
        return None
    cpus = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    workers = min(config.train.workers[1], int(cpus / config.train.cpus_per_worker))
    # On this machine alone Ray is told of more CPUs than there are cores; a node's word is taken for its cores.
    cores = min(int(cpus), os.cpu_count() or 1) if len(ray.nodes()) == 1 else int(cpus)
    if workers * config.train.threads <= cores:
        return None
    return (
        f"train.threads={config.train.threads}: {workers} workers on a node of {cores} cores get in each other's way; "
        "lower it, or train.num_workers"
    )


def cause(error: BaseException) -> BaseException:
    """The innermost reason of an error that crossed processes."""
    for inner in _inside(error):
        return cause(inner)
    return error


def _inside(error: BaseException) -> Iterator[BaseException]:
    yield from (getattr(error, "worker_failures", None) or {}).values()
    for name in ("cause", "__cause__", "training_failed_error"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException) and inner is not error:
            yield inner
