"""CPUs and GPUs: what a run reserves, what the cluster has, and how many runs fit at once.

Ray waits without a word for resources that it does not have. So everything is checked here before it is asked for.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from pipelines.config import Config
from pipelines.runtime.cores import logical_cpus
from pipelines.text import counted

_FEW_CORES = 2  # of a machine on which the start of actors takes as long as they save
_UNITS = 10_000  # of a resource: no share of it is finer in Ray
_IMAGES_AN_ACTOR = 8  # at least: it starts in the time in which it measures a few


class ResourceError(ValueError):
    """A run reserves more than the cluster has. One line."""


def worker_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for a training worker, by the name of the resource."""
    train = config.train
    return {"CPU": train.cpus_per_worker, **({"GPU": train.gpus_per_worker} if train.use_gpu else {})}


def process_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for the process of a run in a table, a study or a sweep, which trains itself or has workers."""
    each = worker_resources(config) if config.train.local else {}
    return {"CPU": each.get("CPU", 0.0), "GPU": each.get("GPU", 0.0)}


def training_cpus(config: Config, workers: int | None = None) -> float:
    """CPUs that training reserves: those of its workers and, unless their number is elastic, those of Ray Data.

    Args:
        workers: how many; None: the most that are configured.
    """
    train = config.train
    return (workers or train.workers[1]) * train.cpus_per_worker + (0 if train.elastic else train.data_cpus)


def run_cpus(config: Config) -> float:
    """CPUs that a run reserves at most, while it trains or while it evaluates."""
    actors = config.evaluate.actors
    return max(training_cpus(config), process_resources(config)["CPU"] + (1.0 if actors is None else float(actors)))


def on_a_cluster() -> bool:
    """Whether this process has joined, or is to join, a cluster, or runs on one as a task or an actor."""
    if os.environ.get("RAY_ADDRESS", "").strip():
        return True
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized()) and (_in_a_worker() or len(ray.nodes()) > 1)


def evaluation_actors(config: Config, images: int) -> int:
    """How many actors an evaluation has; 0: it is done in this process. Ray is up if this is `on_a_cluster`.

    As many as are configured. Where none are, a GPU of this machine is used by this process, which saves the start of
    further ones, and so are the CPUs of a small machine. A larger one has an actor for each core, a cluster one for
    each of its CPUs or GPUs, as long as each has some images. A trial of a sweep or a run of a table, which share them,
    has one; or none, if it trains itself and so has reserved what it needs.

    Args:
        images: that are evaluated.
    """
    if config.evaluate.actors is not None:
        return config.evaluate.actors
    if on_a_cluster():
        if _in_a_worker():
            return 0 if config.train.local else 1
        have = capacity()
        on_gpus = workers_on_gpus(config, have.get("GPU", 0)) if config.evaluate.use_gpu else math.inf
        return int(max(1, min(have.get("CPU", 0), on_gpus, images // _IMAGES_AN_ACTOR)))
    cores = os.cpu_count() or 1
    if config.evaluate.use_gpu or cores <= _FEW_CORES:
        return 0
    actors = min(cores, images // _IMAGES_AN_ACTOR)
    return actors if actors > 1 else 0


def _in_a_worker() -> bool:
    from pipelines.runtime import private

    return private.in_a_worker()


def workers_on_gpus(config: Config, gpus: float) -> float:
    """How many workers fit on so many GPUs. A worker's share of a GPU lies on one of them."""
    return gpus * _workers_a_gpu(config)


def sharing(config: Config, processes: int, *, on_gpus: bool) -> int:
    """How many of a machine's processes share its memory or, on GPUs, that of one GPU."""
    return max(1, min(processes, _workers_a_gpu(config))) if on_gpus else processes


def _workers_a_gpu(config: Config) -> int:
    """As Ray places them, which cuts shares to whole units of 1/10000. In floating point 1 // 0.1 is 9."""
    return _UNITS // max(1, int(_UNITS * config.train.gpus_per_worker))


def capacity() -> dict[str, float]:
    """What Ray has, or would have once its autoscaler had started all the nodes that it may start. Ray is up."""
    import ray

    from pipelines.runtime import private

    have, most = ray.cluster_resources(), private.autoscaler_limits()
    return {name: max(have.get(name, 0), most.get(name, 0)) for name in have.keys() | most.keys()}


def on_this_machine(config: Config) -> dict[str, float] | None:
    """What Ray has, or will have once it is started here for this run; None where a cluster is yet to be joined."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return capacity()
    if os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    return {"CPU": float(logical_cpus(run_cpus(config))), "GPU": float(torch.cuda.device_count())}


def check(config: Config, have: Mapping[str, float] | None = None) -> None:
    """Make sure that the cluster has what the training and the evaluation of a run reserve.

    Args:
        have: what there is; None: what Ray has, which is up.

    Raises:
        ResourceError: the first that is lacking, see `lacking`.
    """
    for reason in lacking(config, capacity() if have is None else have):
        raise ResourceError(reason)


def lacking(config: Config, have: Mapping[str, float]) -> Iterator[str]:
    """What the training and the evaluation of a run reserve and the cluster does not have, the GPUs first: a line each
    that names what is reserved, what Ray has, and the keys that change it.

    Args:
        have: what there is.
    """
    least, _ = config.train.workers
    need = training_cpus(config, least)
    if config.train.use_gpu and workers_on_gpus(config, have.get("GPU", 0)) < least:
        yield (
            f"train.use_gpu=true: {counted(least, 'worker')} at {config.train.gpus_per_worker:g} GPU each, but Ray has "
            f"{have.get('GPU', 0):g}; lower train.num_workers or train.gpus_per_worker, or set train.use_gpu=false"
        )
    if have.get("CPU", 0) < need:
        yield (
            f"train.num_workers={least}: at train.cpus_per_worker={config.train.cpus_per_worker:g}, "
            f"train.data_cpus={config.train.data_cpus:g} training reserves {need:g} CPUs, but Ray has "
            f"{_cpus(have)}; lower one of them, or join a larger cluster (RAY_ADDRESS)"
        )
    try:
        check_evaluation(config, have)
    except ResourceError as error:
        yield str(error)


def _cpus(have: Mapping[str, float]) -> str:
    """Ray's CPUs, of which a single machine may have been given more than its cores (`logical_cpus`)."""
    count, cores = have.get("CPU", 0), os.cpu_count() or 1
    return f"{count:g}" + (f" ({cores} cores, counted twice)" if not on_a_cluster() and count == 2 * cores else "")


def check_process(config: Config) -> None:
    """Make sure that a run without workers is not one of a cluster's head, which is left to what manages the cluster.

    Raises:
        ResourceError: it is, and is no run of a table or a study, which Ray places on any node.
    """
    if config.train.local and on_a_cluster() and not _in_a_worker():
        raise ResourceError(
            "train.num_workers=0: trains in the run's own process, which on a cluster (RAY_ADDRESS) is at its head; "
            "give 1 worker or more, or unset RAY_ADDRESS to train on this machine alone"
        )


def check_evaluation(config: Config, have: Mapping[str, float] | None = None) -> None:
    """Make sure that the cluster has what the evaluation of a run reserves.

    Args:
        have: as in `check`.

    Raises:
        ResourceError: names what is reserved, what Ray has, and the keys that change it.
    """
    have = capacity() if have is None else have
    actors, fewer = config.evaluate.actors, "lower evaluate.actors"
    if actors is None:
        if not on_a_cluster():
            return  # as many as there is room for, or none
        actors, fewer = 1, "join a cluster with GPUs (RAY_ADDRESS)"
    if not actors:
        return
    own = process_resources(config)
    free = {name: have.get(name, 0) - own[name] for name in own}
    beside = " beside the run's own process (train.num_workers=0)" if config.train.local else ""
    if free["CPU"] < actors:
        raise ResourceError(
            f"evaluate.actors={actors}: each reserves 1 CPU{beside}, but Ray has {have.get('CPU', 0):g}; lower it, or "
            "join a larger cluster (RAY_ADDRESS)"
        )
    if config.evaluate.use_gpu and workers_on_gpus(config, free["GPU"]) < actors:
        raise ResourceError(
            f"evaluate.use_gpu=true: {actors} actors (evaluate.actors) need {config.train.gpus_per_worker:g} GPU each"
            f"{beside}, but Ray has {have.get('GPU', 0):g}; {fewer}, or set evaluate.use_gpu=false"
        )


def runs_that_fit(configs: Sequence[Config], concurrent: int | None, *, verbose: bool) -> int:
    """Start or join Ray, and find how many of these runs fit at once, whichever of them they are.

    Args:
        configs: at least one.
        concurrent: at most so many; None: no limit.
        verbose: show Ray's own log.

    Raises:
        ResourceError: one of them alone reserves more than Ray has, or `concurrent` is below 1.
    """
    if concurrent is not None and concurrent < 1:
        raise ResourceError(f"concurrent={concurrent}: at least 1")
    import ray

    from pipelines.runtime import session

    need = max(map(run_cpus, configs))
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        session.start(cpus=need, verbose=verbose)
        have = capacity()
        fit = min(runs_at_once(config, have.get("CPU", 0.0), have.get("GPU", 0.0)) for config in configs)
    else:
        # Ray is started with more CPUs than this machine has cores if one run needs them, but not for several runs.
        cores = float(os.cpu_count() or 1)
        fit = max(1, min(runs_at_once(config, cores, math.inf) for config in configs))
        session.start(cpus=need * min(fit, concurrent or fit), verbose=verbose)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        fit = min([fit, *(runs_at_once(config, math.inf, gpus) for config in configs if config.train.use_gpu)])
    if fit < 1:
        for config in configs:
            check(config)  # names what is missing
        fit = 1  # an elastic run fits with fewer workers than its most
    return min(fit, concurrent or fit)


def runs_at_once(config: Config, cpus: float, gpus: float) -> int:
    """How many runs of this configuration fit on so many CPUs and GPUs, ingest and evaluation included."""
    fit = [cpus / run_cpus(config)]
    if config.train.use_gpu:
        fit.append(workers_on_gpus(config, gpus) / config.train.workers[1])
    if config.evaluate.use_gpu and config.evaluate.actors != 0:
        own = process_resources(config)["GPU"] > 0  # it keeps its share while its actors evaluate
        fit.append(workers_on_gpus(config, gpus) / ((config.evaluate.actors or 1) + own))
    return int(min(fit)) if min(fit) < math.inf else 10**6


def shortage(config: Config) -> str:
    """What a run's workers are waiting for, and what is free now. Ray is up."""
    import ray

    each, free = worker_resources(config), ray.available_resources()
    least, most = config.train.workers
    count = f"{least} to {most} workers" if config.train.elastic else counted(most, "worker")
    now = {name: free.get(name, 0) for name in each}
    return f"waiting for {count} with {listed(each, ' and ')} each; Ray has {listed(now, ' and ')} free"


def ingest_shortage(config: Config) -> str:
    """Why the crops that a run's workers wait for may not come. Ray is up."""
    import ray

    if config.train.elastic:  # these tasks reserve no CPU
        return "the tasks that cut them are slow"
    free = ray.available_resources().get("CPU", 0)
    return f"the tasks that cut them are slow, or wait for a CPU: Ray has {free:g} free"


def oversubscribed(config: Config) -> str | None:
    """A warning if the CPU workers of a node have more threads than it has cores, which slows them all down."""
    if config.train.use_gpu:
        return None
    import ray

    cpus = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    workers = min(config.train.workers[1], int(cpus / config.train.cpus_per_worker))
    # On a cluster a node's CPUs are its cores. On a single machine Ray may have been started with more.
    cores = min(int(cpus), os.cpu_count() or 1) if len(ray.nodes()) == 1 else int(cpus)
    if workers * config.train.threads <= cores:
        return None
    return (
        f"train.threads={config.train.threads}: {workers} workers on a node with {cores} cores have more threads than "
        "that and slow each other down; lower it, or train.num_workers"
    )


def listed(resources: Mapping[str, float], separator: str = ", ") -> str:
    """Resources as text, such as "2 CPU, 1 GPU"."""
    return separator.join(f"{amount:g} {name}" for name, amount in resources.items())
