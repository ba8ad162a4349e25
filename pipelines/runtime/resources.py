"""How many trainings run at once: as many as their workers, ingest and evaluation fit, so that none waits for ever."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import ray

from pipelines.config import Config
from pipelines.runtime import private, session


def runs_that_fit(configs: Sequence[Config], concurrent: int | None, *, verbose: bool) -> int:
    """Start or join Ray, and say how many of the trainings fit at once, whichever of them they are.

    Raises:
        ResourceError: one of them alone is too much, or `concurrent` is below 1.
    """
    if concurrent is not None and concurrent < 1:
        raise ResourceError(f"concurrent={concurrent}: at least 1")
    need = max(map(cpus_of, configs))
    on_gpus = [config for config in configs if config.train.use_gpu]
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        session.start(cpus=need, verbose=verbose)
        have = capacity()
        fits = min(at_once(config, have.get("CPU", 0.0), have.get("GPU", 0.0)) for config in configs)
    else:  # this machine's cores, though Ray is told of more when a single training wants them
        cores = float(os.cpu_count() or 1)
        fits = max(1, min(at_once(config, cores, math.inf) for config in configs))
        session.start(cpus=need * min(fits, concurrent or fits), verbose=verbose)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        fits = min([fits, *(at_once(config, math.inf, gpus) for config in on_gpus)])
    if fits < 1:
        for config in configs:
            check(config)  # names what is missing
        actors = max(config.evaluate.actors for config in configs)
        raise ResourceError(f"evaluate.actors={actors}: more than Ray's CPUs; lower it")
    return min(fits, concurrent or fits)


def at_once(config: Config, cpus: float, gpus: float) -> int:
    """How many such trainings so many CPUs and GPUs hold side by side, ingest and evaluation included."""
    fits = [cpus / cpus_of(config)]
    places = gpu_places(config, gpus)
    if config.train.use_gpu:
        fits.append(places / config.train.workers[1])
    if config.evaluate.use_gpu and config.evaluate.actors:
        fits.append(places / config.evaluate.actors)
    return int(min(fits)) if min(fits) < math.inf else 10**6


def cpus_of(config: Config) -> float:
    """CPUs that a training with its evaluation reserves at most."""
    return max(cpus_needed(config), float(config.evaluate.actors))


class ResourceError(ValueError):
    """More than the cluster has was asked for. One line."""


def cpus_needed(config: Config, workers: int | None = None) -> float:
    """CPUs that training reserves, those of Ray Data included; without them it would wait for ever.

    Args:
        workers: None: the most. With [least, most] workers ingest reserves nothing (`data.stream`).
    """
    train = config.train
    return (workers or train.workers[1]) * train.cpus_per_worker + (0 if train.elastic else train.data_cpus)


def capacity() -> dict[str, float]:
    """What Ray has, or would have once its autoscaler has started all the nodes it may start."""
    have, most = ray.cluster_resources(), private.autoscaler_limits()
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


def shortage(config: Config) -> str:
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
    check_evaluation(config)


def check_evaluation(config: Config) -> None:
    """Stop before an evaluation would wait for actors that the cluster cannot place.

    Raises:
        ResourceError: names what the actors ask for, what Ray has, and the keys that change it.
    """
    have, actors = capacity(), config.evaluate.actors
    if have.get("CPU", 0) < actors:
        raise ResourceError(
            f"evaluate.actors={actors}: each reserves 1 CPU, but Ray has {have.get('CPU', 0):g}; lower it, or join a "
            "larger cluster (RAY_ADDRESS)"
        )
    if config.evaluate.use_gpu and gpu_places(config, have.get("GPU", 0)) < actors:
        raise ResourceError(
            f"evaluate.use_gpu=true: {actors} actors (evaluate.actors) need {config.train.gpus_per_worker:g} GPU each, "
            f"but Ray has {have.get('GPU', 0):g}; lower evaluate.actors, or set evaluate.use_gpu=false"
        )


def oversubscribed(config: Config) -> str | None:
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
