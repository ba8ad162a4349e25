"""What the first and the second Ctrl-C do to a run, and that a worker learns of it without waiting."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pipelines.training import interrupt
from pipelines.training.messages import MessageQueue


def press(*after: float, number: int = signal.SIGINT) -> None:
    """Ctrl-C, so many seconds from now."""
    for seconds in after:
        threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_asks_and_the_job_ends_by_itself(number: int) -> None:
    asked = threading.Event()
    before = signal.getsignal(number)
    press(0.1, number=number)
    assert interrupt.run_interruptible(lambda: asked.wait(10), request_stop=asked.set) is True
    assert asked.is_set() and signal.getsignal(number) is before


def test_twice_leaves_at_once() -> None:
    press(0.1, 0.2)
    since = time.monotonic()
    with pytest.raises(interrupt.Abandoned):
        interrupt.run_interruptible(lambda: time.sleep(60), request_stop=lambda: None)
    assert time.monotonic() - since < 30


def test_a_job_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_TIMEOUT", 0.3)
    press(0.1)
    with pytest.raises(interrupt.Abandoned):
        interrupt.run_interruptible(lambda: time.sleep(60), request_stop=lambda: None)


def test_without_a_worker_once_leaves_at_once() -> None:
    """Nobody could answer the request, and nothing was trained since the last checkpoint."""
    press(0.1)
    since = time.monotonic()
    with pytest.raises(interrupt.Abandoned):
        interrupt.run_interruptible(
            lambda: time.sleep(60), request_stop=lambda: pytest.fail("asked"), at_work=lambda: False
        )
    assert time.monotonic() - since < 30


def test_a_job_that_is_left_alone() -> None:
    assert interrupt.run_interruptible(lambda: None, request_stop=lambda: None) is False
    with pytest.raises(ValueError, match="its own"):
        interrupt.run_interruptible(lambda: (_ for _ in ()).throw(ValueError("its own")), request_stop=lambda: None)


def test_in_another_thread_it_is_but_a_call() -> None:
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(interrupt.run_interruptible(lambda: found.append("ran"), request_stop=lambda: None))
    )
    thread.start()
    thread.join(10)
    assert found == ["ran", False]


def test_a_worker_learns_of_a_stop_request(ray_session: None) -> None:
    messages = MessageQueue.remote()
    polls = interrupt.StopRequest(messages, enabled=True, interval=0.0)
    does_not = interrupt.StopRequest(messages, enabled=False)
    assert not any(polls.received() for _ in range(20))
    messages.request_stop.remote()
    end = time.monotonic() + 20
    while not polls.received():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not does_not.received()
