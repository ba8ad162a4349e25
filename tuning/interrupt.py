"""Ctrl-C and SIGTERM in a sweep: at the first Ray Tune saves its state and ends its trials; the second leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading

from ray import tune

from pipelines.runtime import leaving, private
from pipelines.text import show

# Seconds from the first signal until the end: Ray Tune gives the trials 10, the rest is for the table and MLflow.
# `ray job stop` kills the driver after 60.
_TIMEOUT = 50.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Kubernetes and Slurm send SIGTERM
_OWN_HANDLER = "TUNE_DISABLE_SIGINT_HANDLER"  # without it Ray Tune takes SIGINT, and `leaving` is not told of an answer


def fit(tuner: tune.Tuner, name: str) -> bool:
    """Run a sweep's tuner; gives whether a signal has ended it.

    Outside the main thread, where signal handlers cannot be set, this is a plain call.

    Args:
        name: of the sweep.

    Raises:
        KeyboardInterrupt: at the second signal, or at the first one if no trial can have begun.
        LostError: Ray has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        tuner.fit()
        return False
    signals = 0

    def on_signal(*_: object) -> None:
        nonlocal signals
        if reason := leaving.why_lost():
            raise leaving.LostError(reason)
        signals += 1
        if signals == 1:
            leaving.grace(_TIMEOUT)
        if signals > 1 or not private.stop_tune():
            raise KeyboardInterrupt
        show(f"sweep {name}: ends its trials, which keep their last checkpoints; Ctrl-C again leaves at once",
             file=sys.stderr)  # fmt: skip

    before = os.environ.get(_OWN_HANDLER)
    previous = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGUSR1)}  # Tune sets SIGUSR1
    os.environ[_OWN_HANDLER] = "1"
    try:
        for number in _SIGNALS:
            signal.signal(number, on_signal)
        tuner.fit()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if before is None:
            del os.environ[_OWN_HANDLER]
        else:
            os.environ[_OWN_HANDLER] = before
    return signals > 0
