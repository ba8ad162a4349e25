"""A process ends seconds after a signal, also where its main thread is stuck in C; and after Ray was lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BEGIN = """
import ctypes, signal, sys, threading, time
from pipelines.runtime import leaving
leaving._UNANSWERED, leaving._ANSWERED, leaving._CLOSING, leaving._LOST = 0.25, 0.5, 0.25, 0.25
leaving.guard()

def stuck():
    lock, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)  # as in Ray's C++: no signal handler runs
    c.pthread_mutex_lock(lock)
    c.pthread_mutex_lock(lock)

def deaf():
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

print("begun", flush=True)
"""


def run(code: str, *signals: tuple[float, int]) -> tuple[int, str, str, float]:
    """Run a script and send signals; exit code, stdout, stderr, and seconds since the last signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    for seconds, number in signals:
        time.sleep(seconds)
        process.send_signal(number)
    since = time.monotonic()
    try:
        out, err = process.communicate(timeout=15)
    finally:
        process.kill()
    return process.returncode, out, err, time.monotonic() - since


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["stuck", "deaf"])
def test_a_process_that_does_not_answer_is_left(how: str, number: int) -> None:
    code, _, err, took = run(f"{how}()", (0.2, number))
    assert code == 130 and took < 5
    goes_on = "the same command goes on from what is complete on disk (the last checkpoint), or begins again"
    assert err == f"d2sm: stopped; {goes_on}\n"


def test_a_second_signal_leaves_soon_and_the_line_is_said_once() -> None:
    code, _, err, took = run("leaving._ANSWERED = 60\nleaving.said()\ndeaf()", (0.2, signal.SIGINT))
    assert (code, err) == (130, "") and took < 5  # said already: Python is ending
    code, _, err, took = run("leaving._ANSWERED = 60\ndeaf()", (0.2, signal.SIGINT), (0.5, signal.SIGTERM))
    assert code == 130 and err.count("\n") == 1 and took < 5


def test_a_signal_that_is_answered_has_its_time() -> None:
    """A checkpoint is written; then the process goes on, or ends by itself."""
    answer = "signal.signal(signal.SIGINT, lambda *_: leaving.grace(60))\n"
    code, out, err, _ = run(f"{answer}time.sleep(1.25)\nprint('written')", (0.2, signal.SIGINT))
    assert (code, out, err) == (0, "written\n", "")
    answer = "signal.signal(signal.SIGINT, lambda *_: leaving.grace(0.8))\n"
    go_on = "time.sleep(0.4)\nleaving.go_on()\ntime.sleep(1)\nprint('done')"
    code, out, err, _ = run(answer + go_on, (0.2, signal.SIGINT))
    assert (code, out, err) == (0, "done\n", "")


@pytest.mark.parametrize("code", [0, 3])
def test_all_is_done_before_the_memory_is_left(tmp_path: Path, code: int) -> None:
    """Threads, functions for the end, temporary folders, the log and what was printed; and the exit code is kept.

    A destructor that would run after all of that does not.
    """
    script = f"""
import atexit, logging, pathlib, tempfile

class Last:
    def __del__(self):
        print("freed")

last = Last()
folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})
atexit.register(lambda: print("end", pathlib.Path(folder.name).is_dir()))
logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=logging.StreamHandler(sys.stdout)))
logging.getLogger().warning("logged")
threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
sys.exit(leaving.end({code}))
"""
    found, out, err, _ = run("import logging.handlers" + script)
    assert (found, err) == (code, "")
    assert out.splitlines() == ["thread", "end True", "logged"]
    assert list(tmp_path.iterdir()) == []


def test_ray_is_ended_in_any_order_of_imports() -> None:
    script = """
time.sleep(0.5)  # `run` has read its first line
sys.modules["ray"] = ray = type(sys)("ray")
ray.shutdown = lambda: print("ray")
sys.exit(leaving.end(0))
"""
    assert run(script)[:3] == (0, "ray\n", "")


def test_an_error_that_nobody_expected_ends_python_as_usual() -> None:
    code, _, err, _ = run("raise RuntimeError('unexpected')")
    assert code == 1 and "RuntimeError: unexpected" in err


@pytest.mark.parametrize("how", ["stuck", "deaf"])
def test_without_ray_a_process_ends_with_a_line(how: str) -> None:
    lose = "threading.Timer(0.2, leaving.lose, ['Ray has ended; start again']).start()\n"
    code, _, err, _ = run(f"{lose}{how}()")
    assert code == 1 and err.endswith("Ray has ended; start again\n")
    code, out, err, _ = run(f"{lose}try:\n    time.sleep(60)\nexcept leaving.LostError as e:\n    print(e)")
    assert (code, out, err) == (0, "Ray has ended; start again\n", "")


def test_ray_that_ends_with_a_stopped_process_changes_no_exit_code() -> None:
    """While Python ends, Ray ends its processes, and a busy machine may take long over it."""
    ending = "except KeyboardInterrupt:\n    leaving.said()\nleaving.lose('Ray has ended')\nstuck()"
    code, _, err, _ = run(f"try:\n    time.sleep(60)\n{ending}", (0.2, signal.SIGINT))
    assert (code, err) == (130, "")


def test_another_process_is_left_alone() -> None:
    """What is no command of ours keeps its own handlers: nothing is done without `guard`."""
    code = (
        "from pipelines.runtime import leaving\nimport signal\nbefore = signal.getsignal(signal.SIGTERM)\n"
        "leaving.grace(0); leaving.lose('x'); leaving.take_signals(); leaving.go_on()\n"
        "assert signal.getsignal(signal.SIGTERM) is before and not leaving.why_lost() and not leaving.active()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
