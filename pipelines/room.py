"""How many trainings run at once: as many as their workers, ingest and evaluation fit, so that none waits for ever."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import ray

from pipelines import session
from pipelines.config import Config


def room(configs: Sequence[Config], concurrent: int | None, *, verbose: bool) -> int:
    """Start or join Ray, and say how many of the trainings fit at once, whichever of them they are.

    Raises:
        ResourceError: one of them alone is too much, or `concurrent` is below 1.
    """
    if concurrent is not None and concurrent < 1:
        raise session.ResourceError(f"concurrent={concurrent}: at least 1")
    need = max(map(cpus_of, configs))
    on_gpus = [config for config in configs if config.train.use_gpu]
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        session.start(cpus=need, verbose=verbose)
        have = session.capacity()
        fits = min(at_once(config, have.get("CPU", 0.0), have.get("GPU", 0.0)) for config in configs)
    else:  # this machine's cores, though Ray is told of more when a single training wants them
        cores = float(os.cpu_count() or 1)
        fits = max(1, min(at_once(config, cores, math.inf) for config in configs))
        session.start(cpus=need * min(fits, concurrent or fits), verbose=verbose)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        fits = min([fits, *(at_once(config, math.inf, gpus) for config in on_gpus)])
    if fits < 1:
        for config in configs:
            session.check(config)  # says what is missing, but for evaluation
        actors = max(config.evaluate.actors for config in configs)
        raise session.ResourceError(f"evaluate.actors={actors}: more than Ray's CPUs; lower it")
    return min(fits, concurrent or fits)


def at_once(config: Config, cpus: float, gpus: float) -> int:
    """How many such trainings so many CPUs and GPUs hold side by side, ingest and evaluation included."""
    fits = [cpus / cpus_of(config)]
    places = session.gpu_places(config, gpus)
    if config.train.use_gpu:
        fits.append(places / config.train.workers[1])
    if config.evaluate.use_gpu and config.evaluate.actors:
        fits.append(places / config.evaluate.actors)
    return int(min(fits)) if min(fits) < math.inf else 10**6


def cpus_of(config: Config) -> float:
    """CPUs that a training with its evaluation reserves at most."""
    return max(session.cpus_needed(config), float(config.evaluate.actors))
