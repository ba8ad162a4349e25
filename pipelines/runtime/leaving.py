"""Leaving the process of a verb: within seconds of Ctrl-C or SIGTERM, or of the loss of Ray, whatever is stuck.

Python runs signal handlers in the main thread, between two of its instructions. While that thread waits inside Ray's
C++, such as for a head that is gone, this may be minutes later. So a thread of its own is told of every signal at once
(through Python's wakeup file descriptor) and ends the process where the main thread has not done so in time.

Only the command line does this (`guard`); in any other process the functions here do nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from typing import NoReturn

KEPT = "the same command goes on from what is complete on disk (the last checkpoint), or begins again"
STOPPED = f"stopped; {KEPT}"
INTERRUPTED = 130  # exit code after Ctrl-C
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNANSWERED = 5.0  # seconds for the main thread to run its handler, and after a second signal until the end
_ANSWERED = 20.0  # seconds from the first signal until the end, unless `grace` gives more
_CLOSING = 8.0  # seconds for the end of Python, in which Ray ends its processes
_LOST = 12.0  # seconds from the loss of Ray until the end


class LostError(OSError):
    """Ray has ended under this process. One line."""


class _Guard:
    """What is known of the end of this process. Times are those of time.monotonic()."""

    def __init__(self) -> None:
        self.active = False
        self.signals = 0
        self.answered = False  # whether the main thread has run its handler
        self.line = STOPPED  # that the process ends with after a signal
        self.starting = False  # whether Ray is being started in a thread
        self.said = False  # whether the line that the process ends with is printed
        self.end: float | None = None  # when it is left
        self.granted = False  # whether that is what `grace` gave
        self.lost = ""  # why Ray is lost
        self.wakeup = -1  # file descriptor
        self.code: int | None = None  # with which Python ends the process, where that is known


_state = _Guard()


def guard() -> None:
    """Take care from now on that this process ends soon after a signal. To be called in the main thread."""
    if _state.active or threading.current_thread() is not threading.main_thread():
        return
    read, _state.wakeup = os.pipe()
    os.set_blocking(_state.wakeup, False)
    signal.set_wakeup_fd(_state.wakeup, warn_on_full_buffer=False)
    _state.active = True
    atexit.register(_leave_memory)  # the first to be registered is the last to be called
    take_signals()
    threading.Thread(target=_serve, args=(read,), name="leaving", daemon=True).start()


def active() -> bool:
    """Whether this process is guarded."""
    return _state.active


def take_signals() -> None:
    """Set the handlers again, after Ray has set its own for SIGTERM."""
    if _state.active and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)


def signalled() -> bool:
    """Whether a signal has asked this process to end."""
    return _state.signals > 0


def line() -> str:
    """What is said when a signal ends this process."""
    return _state.line


def say_at_end(text: str) -> None:
    """Say this when a signal ends this process."""
    _state.line = text


def starting(now: bool) -> None:
    """Note whether a thread is starting Ray."""
    _state.starting = now


def end(code: int) -> int:
    """The exit code of a process that has nothing left to do: its memory need not be freed (see `_leave_memory`).

    While a thread is starting Ray, the process is left at once: Python's own end would leave Ray half started.
    """
    if _state.active and _state.starting:
        leave(code)
    _state.code = code
    return code


def grace(seconds: float) -> None:
    """The first signal is being answered: the process may take so many seconds from now on to end."""
    if _state.active and _state.signals < 2 and not _state.lost:
        _state.answered = _state.granted = True
        _leave_at(time.monotonic() + seconds)


def go_on() -> None:
    """The first signal has been answered, and the process goes on."""
    if _state.active and not _state.lost:
        _state.signals, _state.granted = 0, False
        _leave_at(None)


def said() -> None:
    """The line that the process ends with is printed; what Python and Ray do at the end may take a few seconds more."""
    _state.said = True
    grace(_CLOSING)


def lose(reason: str) -> None:
    """Ray has ended: interrupt the main thread with a `LostError`, and end the process if that does not.

    Where the process is ending already, this is Ray's own end, and the exit code stays.
    """
    if not _state.active or _state.lost or _state.said:
        return
    _state.lost = reason
    _leave_at(time.monotonic() + _LOST)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # a real one, which also ends a system call


def why_lost() -> str:
    """Why Ray is lost; "" while it is not."""
    return _state.lost


def leave(code: int, line: str = "") -> NoReturn:
    """End this process now: nothing that is still at work is waited for."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    if line and not _state.said:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), f"d2sm: {line}\n".encode(errors="backslashreplace"))
    with contextlib.suppress(Exception):  # Ray's processes on this machine, of which some would stay for a while
        import psutil

        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(code)


def _leave_memory() -> None:
    """Leave the process once threads have ended and all that was to be called at its end has been called.

    What Python does next, freeing each object of torch, Ray and MLflow, takes one to two seconds.
    """
    if _state.code is None:
        return
    # Where it was imported before `guard`, its own function for the end comes later. An import that was interrupted has
    # no such name yet.
    if shutdown := getattr(sys.modules.get("ray"), "shutdown", None):
        shutdown()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(_state.code)


def _interrupt(*_: object) -> None:
    _state.answered = True
    if _state.said:  # Python is ending; its functions for that are what takes long
        leave(INTERRUPTED)
    if _state.lost:
        raise LostError(_state.lost)
    raise KeyboardInterrupt


def _leave_at(end: float | None) -> None:
    _state.end = end
    with contextlib.suppress(OSError):
        os.write(_state.wakeup, b"\0")


def _serve(read: int) -> None:
    """Wait for signals and for the end of the time that they leave."""
    while True:
        left = None if _state.end is None else max(0.0, _state.end - time.monotonic())
        if select.select([read], [], [], left)[0]:
            arrived = sum(number in _SIGNALS for number in os.read(read, 4096))
            if arrived and not _state.lost:
                _state.signals += arrived
                if _state.signals > 1 or not _state.granted:
                    _state.end = time.monotonic() + _UNANSWERED
        elif _state.end is not None and time.monotonic() >= _state.end:
            if _state.lost:
                leave(1, _state.lost)
            if _state.signals == 1 and _state.answered and not _state.granted:
                _state.signals, _state.end = 2, time.monotonic() + _ANSWERED - _UNANSWERED
            else:
                leave(INTERRUPTED, _state.line)
