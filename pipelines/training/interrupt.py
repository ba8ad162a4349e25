"""Ctrl-C: the first one asks the workers for a checkpoint and an end, the second one leaves at once.

The driver sets a flag in the run's `MessageQueue`. Rank 0 polls it, and all ranks learn of it in the same step
(`d2sm.distributed.AnyRank`), so they end together with a checkpoint of that step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from pipelines.runtime import leaving

_TIMEOUT = 45.0  # seconds the workers have for the checkpoint; `ray job stop` kills the driver after 60
_CLOSING = 8.0  # seconds to close the MLflow run and Ray after the workers were given up
_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Kubernetes and Slurm send SIGTERM


class Abandoned(KeyboardInterrupt):
    """The driver left without waiting for its workers, which may still run."""


class StopRequest:
    """Polls the driver's stop flag without blocking.

    Args:
        messages: handle of the run's `MessageQueue`.
        enabled: False on the ranks that learn of it from another rank.
        interval: seconds between two polls.
    """

    def __init__(self, messages: Any, *, enabled: bool, interval: float = 0.5) -> None:
        self.messages, self.enabled, self.interval = messages, enabled, interval
        self._pending: Any = None  # the call whose answer has not arrived
        self._polled = 0.0

    def received(self) -> bool:
        """Whether the answer to an earlier poll, if it has arrived, says that the driver asked for a stop."""
        if not self.enabled:
            return False
        if self._pending is None:
            if time.monotonic() - self._polled >= self.interval:
                self._polled = time.monotonic()
                self._pending = self.messages.stop_requested.remote()
            return False
        if not ray.wait([self._pending], timeout=0)[0]:
            return False
        pending, self._pending = self._pending, None
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and Ray ends this worker too
            return bool(ray.get(pending))
        return False


def run_interruptible(
    function: Callable[[], object],
    *,
    request_stop: Callable[[], None],
    at_work: Callable[[], bool] = lambda: True,
) -> bool:
    """Call a function that blocks until the run has ended; gives whether a stop was requested meanwhile.

    The function runs in a thread, because Ray Train's own handler of Ctrl-C would end the workers without a checkpoint.
    Outside the main thread, where signal handlers cannot be set, this is a plain call.

    Args:
        function: ends soon after `request_stop` was called.
        request_stop: called at the first SIGINT or SIGTERM.
        at_work: whether workers are there that could answer the request.

    Raises:
        Abandoned: at the second signal, at the first one if no worker is at work, or if the function has not returned
            45 s after the first.
        LostError: Ray has ended.
        Exception: what the function raises.
    """
    if threading.current_thread() is not threading.main_thread():
        function()
        return False
    errors: list[BaseException] = []
    signalled: list[float] = []

    def in_thread() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    def on_signal(*_: object) -> None:
        if reason := leaving.why_lost():
            raise leaving.LostError(reason)
        signalled.append(time.monotonic())
        if len(signalled) > 1 or not at_work():
            leaving.grace(_CLOSING)
            raise Abandoned
        leaving.grace(_TIMEOUT + 5)
        request_stop()

    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    thread = threading.Thread(target=in_thread, name="training", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if signalled and time.monotonic() - signalled[0] > _TIMEOUT:
                raise Abandoned
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if errors:
        raise errors[0]
    if signalled:
        leaving.go_on()
    return bool(signalled)
