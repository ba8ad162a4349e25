"""One process at a time writes to a run at a URI: a small object there that its owner rewrites every few seconds.

Object stores have no locks. An object that changes belongs to a process that lives; one that does not change for a
while was left by a killed one, and is taken over. No clocks are compared. Of two processes on different machines that
start within the same second, the one that wrote first finds the other's object a moment later, and ends.

This is no lock: a process that cannot reach the bucket for longer than `PATIENCE` may find its run taken over. It says
so, but it goes on, as its workers write to the bucket by themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import parsing
from pipelines.runs import storage
from pipelines.runtime import files, owner
from pipelines.text import redact

OBJECT = ".d2sm-owner.json"  # at the URI; hidden, so that it is no file of the run
HELD = ".d2sm-lease"  # in the copy: the last object that an owner of this copy wrote
BEAT, PATIENCE, SETTLE = 10.0, 35.0, 1.0  # seconds
_log = logging.getLogger(__name__)


@contextmanager
def leased(uri: str, copy: Path, *, remedy: str) -> Iterator[None]:
    """Own the run at a URI while the block runs.

    Args:
        copy: the run's copy on this disk, which this process owns already (see `owner.owned`).
        remedy: the end of the message.

    Raises:
        InUseError: another process owns it.
        RemoteError: it cannot be read or written.
    """
    identity, known = uuid.uuid4().hex, {**owner.this_process()}
    _wait_until_free(uri, copy, remedy)

    def write(beat: int) -> None:
        storage.write_object(uri, OBJECT, json.dumps({**known, "id": identity, "beat": beat}))

    write(0)
    files.write_text(copy / HELD, identity)
    time.sleep(SETTLE)
    _check_ours(uri, identity, remedy)
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT):
            count += 1
            with contextlib.suppress(Exception):  # whatever it is: the next beat may reach the bucket
                try:
                    _check_ours(uri, identity, "end one of the two")
                except owner.InUseError as error:
                    _log.warning("%s", error)
                    return
                write(count)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(BEAT)
        with contextlib.suppress(OSError, owner.InUseError):
            _check_ours(uri, identity, remedy)
            storage.remove_object(uri, OBJECT)


def _wait_until_free(uri: str, copy: Path, remedy: str) -> None:
    """Return once nobody owns the run: no object is there, or it is the one of a process that has ended."""
    first = storage.read_object(uri, OBJECT)
    if first is None or _id(first) == _last_of(copy):  # this copy's owner has ended, or it would own the copy
        return
    _log.warning("%s: has an owner; waiting at most %.0f s for a sign of life", redact(uri), PATIENCE)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(BEAT / 5)
        now = storage.read_object(uri, OBJECT)
        if now is None:
            return
        if now != first:
            raise owner.in_use(redact(uri), now or first, remedy)  # empty: it is being written


def _check_ours(uri: str, identity: str, remedy: str) -> None:
    found = storage.read_object(uri, OBJECT)
    if found is None or _id(found) != identity:
        raise owner.in_use(redact(uri), found or "", remedy)


def _last_of(copy: Path) -> str:
    return (copy / HELD).read_text() if (copy / HELD).is_file() else ""


def _id(text: str) -> object:
    try:
        return parsing.parse_json(text, source=OBJECT).get("id")
    except parsing.ParseError:
        return None
