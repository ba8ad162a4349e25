"""One process at a time writes to a folder: a lock of the operating system, which ends with the process that holds it.

On a shared disk the lock holds on every node that mounts it, as far as the file system has locks (NFS has).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines import parsing
from pipelines.text import one_line

FILE = ".d2sm-owner"  # in the folder while it is owned: who owns it; the lock is on this file

_PATIENCE = 2.0  # seconds: a process that was killed just now may still hold its lock
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_log = logging.getLogger(__name__)


class InUseError(ValueError):
    """Another process writes to the folder. One line."""


class _Owned(threading.local):
    """The folders that this thread owns."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_owned = _Owned()


@contextmanager
def owned(folder: Path, *, remedy: str) -> Iterator[None]:
    """Own a folder while the block runs; within the same thread the blocks may nest.

    The folder is made if need be, and removed again if the block writes nothing to it.

    Args:
        remedy: the end of the message, such as "choose another name".

    Raises:
        InUseError: another process, or another thread, owns it.
        OSError: the folder cannot be written.
    """
    if is_owned(folder):
        yield
        return
    key = folder.absolute()
    made = not folder.exists()
    descriptor = _lock(folder, remedy)
    _owned.folders.add(key)
    try:
        yield
    finally:
        _owned.folders.discard(key)
        (folder / FILE).unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def is_owned(folder: Path) -> bool:
    """Whether this thread owns a folder."""
    return folder.absolute() in _owned.folders


def this_process() -> dict[str, Any]:
    """What others are told of the owner."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def in_use(place: str | Path, owner: str, remedy: str) -> InUseError:
    """The error that says who owns a place.

    Args:
        owner: the text that the owner wrote.
        remedy: see `owned`.
    """
    try:
        known = parsing.parse_json(owner, source=FILE)
        who = one_line(f"process {known['pid']} on {known['host']} since {known['since']}", 200)
    except (parsing.ParseError, KeyError):  # it has not written it yet
        who = "another process"
    return InUseError(f"{place}: is in use by {who}; {remedy}")


def _lock(folder: Path, remedy: str) -> int:
    """Lock the file in the folder, and write into it who owns it; gives its descriptor, which holds the lock."""
    path, end = folder / FILE, time.monotonic() + _PATIENCE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, foreign = _opened(path)
        except FileNotFoundError:  # its former owner has just removed the file, or the empty folder
            continue
        except PermissionError as error:
            if path.is_file():
                raise _cannot_tell(path, error) from None
            raise _cannot_write(folder, error) from None
        except OSError as error:
            raise _cannot_write(folder, error) from None
        ours = False
        try:
            if free := _try(descriptor, path) and _is(path, descriptor):
                if not foreign:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(this_process()).encode())
                    ours = True
                    return descriptor
                _remove(path)  # its process was killed; the next file is ours
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace")
        finally:
            if not ours:
                os.close(descriptor)
        if free:
            continue
        if time.monotonic() > end:
            raise in_use(folder, owner, remedy)
        time.sleep(0.1)


def _opened(path: Path) -> tuple[int, bool]:
    """The descriptor of the file, which is made if need be; and whether another user's process made it.

    Such a file can be locked, and removed from a folder that both users can write, but not written.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), False
    except PermissionError:
        if not path.is_file():
            raise
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW), True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: was left by a process of another user and cannot be removed ({error.strerror}); have it removed, "
            "or give a folder that you can write"
        ) from None


def _cannot_write(folder: Path, error: OSError) -> OSError:
    return OSError(f"{folder}: cannot be written ({error.strerror}); give a folder that can")


def _cannot_tell(path: Path, error: OSError) -> OSError:
    return OSError(
        f"{path}: is another user's, and whether their process still writes to the folder cannot be seen "
        f"({error.strerror}); have the file removed once it has ended"
    )


def _try(descriptor: int, path: Path) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno == errno.EBADF:  # NFS locks no file that is opened to be read
            raise _cannot_tell(path, error) from None
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning(
            "%s: its file system has no locks (%s), so a second process that writes there would not be noticed",
            path.parent,
            error.strerror,
        )
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether the open file still has this path: its former owner removes it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
