"""Measuring many items: here, or in actors of Ray; either way the next items are read while one is measured."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from pipelines.inference.measuring import Measurement, Measurer
from pipelines.runtime.threads import torch_threads

Items = Sequence[Mapping[str, Any]]

_READERS = 4  # threads that read for a GPU, at most: each photograph that is read ahead takes memory
_IN_FLIGHT = 2  # items of an actor: one is measured, one is read
_RESTARTS = 3  # of an actor whose node is lost, and of what it was measuring


def here(measurer: Measurer, items: Items, *, threads: int, readers: int | None = None) -> Iterator[list[Measurement]]:
    """Measure the items in this process, in their order.

    Args:
        threads: torch threads, of the measuring thread and of each that reads.
        readers: threads that read, and the items that are read ahead at most; None: see `readers_for`.

    Raises:
        ImageError, DataError: see `Measurer.load`. The items before have been given.
    """
    readers = readers or readers_for(measurer.device)
    reading = ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(threads,))
    with torch_threads(threads), reading:
        waiting = iter(items)
        ahead = deque(reading.submit(measurer.load, item) for item in itertools.islice(waiting, readers))
        while ahead:
            loaded = ahead.popleft().result()
            ahead.extend(reading.submit(measurer.load, item) for item in itertools.islice(waiting, 1))
            yield measurer.measure(loaded)


def readers_for(device: torch.device) -> int:
    """How many threads read for a device: to read and degrade a photograph takes longer than a GPU measures it."""
    if device.type == "cpu":
        return 1
    return max(1, min(_READERS, len(os.sched_getaffinity(0)) // 2))


def by_actors(
    build: Callable[[], Measurer], items: Items, *, actors: int, gpus: float, threads: int
) -> Iterator[list[Measurement]]:
    """Measure the items in actors of Ray, which is up; gives them in the order in which they are done.

    Args:
        build: makes the measurer of an actor. It holds the network, so it is stored once for all actors.
        actors: how many; each reserves a CPU.
        gpus: that each reserves.
        threads: torch threads of an actor.

    Raises:
        RayError: as the cause of what an actor raised.
    """
    # Given with every item, and not to the constructor: an actor that restarts would look for a constructor's stored
    # argument when it may be gone, of which Ray's native code warns on stderr.
    stored = [ray.put(build)]
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": _RESTARTS, "max_task_retries": _RESTARTS}
    # Not in the placement group of whoever asks, which has no room for them.
    make = ray.remote(_Actor).options(**options, scheduling_strategy="SPREAD", max_concurrency=_IN_FLIGHT)
    pool = [make.remote(threads) for _ in range(min(actors, len(items)))]
    waiting = iter(items)
    at_work: dict[ray.ObjectRef[list[Measurement]], Any] = {}
    for actor, item in zip(pool * _IN_FLIGHT, waiting, strict=False):
        at_work[actor.measure.remote(stored, item)] = actor
    while at_work:
        (done, *_), _ = ray.wait(list(at_work), num_returns=1)
        actor = at_work.pop(done)
        for item in itertools.islice(waiting, 1):
            at_work[actor.measure.remote(stored, item)] = actor
        yield ray.get(done)
    # The actors end with this function's references to them, when what they are at is done.


class _Actor:
    """An actor of Ray: it measures one item, and reads the next one meanwhile."""

    def __init__(self, threads: int) -> None:
        self.threads, self.one_at_a_time = threads, threading.Lock()
        self.measurer: Measurer | None = None

    def measure(
        self, stored: Sequence[ray.ObjectRef[Callable[[], Measurer]]], item: Mapping[str, Any]
    ) -> list[Measurement]:
        """Called by `_IN_FLIGHT` threads. `stored` holds what makes the measurer, which the first item does."""
        torch.set_num_threads(self.threads)
        with self.one_at_a_time:
            if self.measurer is None:
                self.measurer = ray.get(stored[0])()
        loaded = self.measurer.load(item)
        with self.one_at_a_time:
            return self.measurer.measure(loaded)
