"""Ending a run early without losing anything: Ctrl-C once asks the workers for a checkpoint, twice leaves at once.

The driver leaves the wish in the mailbox; worker 0 reads it there now and then; and all workers learn of it in the same
step (`d2sm.distributed.AnyRank`), so that they end together, after a checkpoint of that very step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

_PATIENCE = 45.0  # seconds that workers have for it; a stopped Ray job is killed after 60
_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the second is how Kubernetes and Slurm say it


class Left(KeyboardInterrupt):
    """The run was left at once: its workers may still be there."""


class StopRequest:
    """Whether the driver wants the run to end, asked beside the steps: the answer to an earlier question, if any.

    Args:
        mailbox: the actor that knows (`progress.Mailbox`).
        listens: False for the workers that are told by another.
    """

    def __init__(self, mailbox: Any, *, listens: bool, every: float = 0.5) -> None:
        self.mailbox, self.listens, self.every = mailbox, listens, every
        self.question: Any = None
        self.asked = 0.0

    def known(self) -> bool:
        """True once the driver has asked for it; waits for nothing."""
        if not self.listens:
            return False
        if self.question is None:
            if time.monotonic() - self.asked >= self.every:
                self.asked = time.monotonic()
                self.question = self.mailbox.ends.remote()
            return False
        if not ray.wait([self.question], timeout=0)[0]:
            return False
        question, self.question = self.question, None
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone: training ends with it anyway
            return bool(ray.get(question))
        return False


def interruptible(job: Callable[[], None], *, ask: Callable[[], None]) -> bool:
    """Run a job; whether it was asked to end.

    The job runs in a thread of its own, since Ray Train's own answer to Ctrl-C would drop what was not saved. In a
    process whose main thread is somebody else's, nothing is different from calling it.

    Args:
        job: blocks until the run has ended.
        ask: asks the run to end soon; called at the first Ctrl-C (SIGINT or SIGTERM).

    Raises:
        Left: at the second one, or when the job has not ended 45 s after the first.
        Exception: what the job raises.
    """
    if threading.current_thread() is not threading.main_thread():
        job()
        return False
    errors: list[BaseException] = []
    asked: list[float] = []

    def kept() -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    def on_signal(*_: object) -> None:
        asked.append(time.monotonic())
        if len(asked) > 1:
            raise Left
        ask()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    thread = threading.Thread(target=kept, name="training", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if asked and time.monotonic() - asked[0] > _PATIENCE:
                raise Left
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if errors:
        raise errors[0]
    return bool(asked)
