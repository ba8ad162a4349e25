"""The progress line: its time left, a terminal that goes away, and lines about what is slow."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

import pytest

from pipelines.runtime import progress
from pipelines.runtime.progress import Line, slow_stage, stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_counts_from_the_first_step(clock: list[float]) -> None:
    """A run of 576 steps whose workers needed 48 s to start, and then 0.12 s a step."""
    with Line("run", 576) as line:
        assert str(line.bar).startswith("run 0/576 00:00<?")
        clock[0] = 48
        line.to(20, {"loss": 0.5})
        assert "20/576" in str(line.bar) and "<?" in str(line.bar) and "loss=0.5" in str(line.bar)
        clock[0] = 50.4
        line.to(40)
        assert "<01:04" in str(line.bar)  # 536 steps
        line.interrupted()  # workers restart at an earlier step, which takes 100 s
        clock[0] = 150
        line.to(60)
        clock[0] = 151.2
        line.to(70)
        assert "<01:00" in str(line.bar)  # 506 steps
        line.to(576)
        assert "<00:00" in str(line.bar)


def test_a_resumed_run_counts_its_own_steps_alone(clock: list[float]) -> None:
    with Line("run", 100, start=90) as line:
        clock[0] = 30
        line.to(92)
        clock[0] = 32
        line.to(94)
        assert "94/100" in str(line.bar) and "<00:06" in str(line.bar)


def test_things_are_counted_when_they_are_done() -> None:
    with Line("photographs", 3) as line:
        assert [(thing, line.bar.n) for thing in line.over("abc")] == [("a", 0), ("b", 1), ("c", 2)]
        assert line.bar.n == 3


def test_a_line_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    with Line("run", 2) as line:
        for step in line.over([1, 2]):
            line.say(f"at {step}")
    assert line.bar.n == 2
    other = threading.Thread(target=line.say, args=["from another thread"], daemon=True)  # tqdm's lock is free
    other.start()
    other.join(5)
    assert not other.is_alive()
    with pytest.raises(BrokenPipeError):
        stream.write("so it is closed\n")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_what_is_slow_is_said_and_what_is_not_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="d2sm.stages"):
        stage("starting 100% of it")
        with slow_stage("quick", after=5):
            pass
        with slow_stage("slow", after=0.01):
            time.sleep(0.1)
    assert caplog.messages == ["starting 100% of it", "slow"]
