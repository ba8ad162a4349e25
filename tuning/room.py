"""How many trials run at once: as many as their workers, ingest and evaluation fit, so that none waits for ever."""

from __future__ import annotations

import math
import os

import ray

from pipelines import session
from pipelines.config import Config
from tuning.space import SpaceError


def room(config: Config, concurrent: int | None, *, verbose: bool) -> int:
    """Start or join Ray, and say how many trials fit at once."""
    if concurrent is not None and concurrent < 1:
        raise SpaceError(f"concurrent={concurrent}: at least 1")
    need = max(session.cpus_needed(config), float(config.evaluate.actors))
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        session.start(cpus=need, verbose=verbose)
        have = session.capacity()
        fits = at_once(config, have.get("CPU", 0.0), have.get("GPU", 0.0))
    else:  # this machine's cores, though Ray is told of more when a single trial wants them
        fits = max(1, at_once(config, float(os.cpu_count() or 1), math.inf))
        session.start(cpus=need * min(fits, concurrent or fits), verbose=verbose)
        if config.train.use_gpu:
            fits = min(fits, at_once(config, math.inf, ray.cluster_resources().get("GPU", 0.0)))
    if fits < 1:
        session.check(config)  # says what is missing, but for evaluation
        raise session.ResourceError(f"evaluate.actors={config.evaluate.actors}: more than Ray's CPUs; lower it")
    return min(fits, concurrent or fits)


def at_once(config: Config, cpus: float, gpus: float) -> int:
    """How many trials so many CPUs and GPUs hold side by side, ingest and evaluation included."""
    need = max(session.cpus_needed(config), float(config.evaluate.actors))
    fits = [cpus / need]
    places = session.gpu_places(config, gpus)
    if config.train.use_gpu:
        fits.append(places / config.train.num_workers)
    if config.evaluate.use_gpu:
        fits.append(places / config.evaluate.actors)
    return int(min(fits)) if min(fits) < math.inf else 10**6
