"""A queue of what is to be sent to MLflow, and the thread that sends it.

Training never waits for the tracking server. While it is unreachable, unsent items are kept in memory and in a file of
the run's folder, and sending is retried every few seconds; a run that is continued reads the file back. Items that the
server refuses for what they are go to another file, which nothing reads back.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from typing_extensions import TypedDict

from pipelines import parsing
from pipelines.runtime import files
from pipelines.text import counted, one_line, printable
from pipelines.tracking.store import TrackingError

Item = dict[str, Any]
"""What is sent, as it stands in the file. By its "kind" it also has:

metric     key, value, step, timestamp (milliseconds)
tag        key, value
artifact   path (of a copy in the run's folder), folder (in the artifacts)
status     value
"""

UNSENT = "mlflow-unsent.jsonl"  # in the run's folder: the items, one a line
STAGED = "mlflow-unsent"  # in the run's folder: copies of files to be sent, since the originals may change meanwhile
REFUSED, REFUSED_FILES = "mlflow-refused.jsonl", "mlflow-refused"  # the same of what MLflow refused


class _Metric(TypedDict):
    kind: Literal["metric"]
    key: str
    value: float
    step: int
    timestamp: int


class _Tag(TypedDict):
    kind: Literal["tag"]
    key: str
    value: str


class _Artifact(TypedDict):
    kind: Literal["artifact"]
    path: str
    folder: str


class _Status(TypedDict):
    kind: Literal["status"]
    value: str


_BYTES = 2**28  # of a file of unsent items: some 150 of each
_BATCH = 500  # metrics and tags in one request
_log = logging.getLogger(__name__)


class Refused(Exception):
    """The server does not take an item for what it is; no retry helps."""


class Gone(Exception):
    """The run was deleted: the server takes no item until it is restored."""


class Outbox:
    """Sends items in their order, in a thread of its own.

    While an artifact cannot be sent, as where this machine has no credentials for the store of artifacts, items of
    other kinds are sent before it.

    Args:
        send: called with up to 500 metrics and tags, or with one artifact, whose copy is there, or one status. It
            raises `Refused` if one of them will never be taken, and `Gone` if none is until a later start; after any
            other exception the items are sent again.
        folder: the run's folder.
        ended: whether the run has ended. A status that an earlier process could not send is sent only then: a run that
            goes on is RUNNING again.
        every: seconds between two attempts to send when nobody waits for it.
    """

    def __init__(
        self, send: Callable[[list[Item]], None], folder: Path, *, ended: bool = False, every: float = 1.0
    ) -> None:
        self._send, self._folder, self._every = send, folder, every
        self._items = deque(item for item in _unsent(folder / UNSENT) if ended or item["kind"] != "status")
        self._written = bool(self._items)  # whether the file exists
        self._kept: list[Item] = []  # for a later start
        self._refusals: list[str] = []  # the reasons, one an item
        self._change = threading.Condition()
        self._urgent = self._closed = False
        self._last_error = ""
        self._held_up = self._said = ""  # why the first artifact could not be sent, and what was said of it
        self._warned = False  # that the file cannot be written
        self._copies = 0
        self._thread = threading.Thread(target=self._loop, name="mlflow outbox", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> list[Item]:
        """The items not yet sent."""
        with self._change:
            return list(self._items)

    @property
    def refused(self) -> str:
        """What the server refused for good, where it is, and what to do, on one line; "" if it is nothing."""
        if not self._refusals:
            return ""
        return refused_line(
            self._folder, f"{counted(len(self._refusals), 'record')} ({one_line(self._refusals[0], 300)})"
        )

    def put(self, items: Iterable[Item]) -> None:
        """Queue items; returns at once."""
        with self._change:
            self._items.extend(items)

    def stage(self, name: str) -> Path:
        """A path in the run's folder for the copy of a file that is to be sent; it is removed once sent."""
        with self._change:
            self._copies += 1
            folder = self._folder / STAGED / f"{time.time_ns():x}-{self._copies}"
        folder.mkdir(parents=True)
        return folder / name

    def flush(self, timeout: float) -> bool:
        """Send now, and wait at most `timeout` seconds; gives whether everything is sent."""
        with self._change:
            self._urgent = True
            self._change.notify_all()
            done = self._change.wait_for(lambda: not self._items, timeout)
            self._urgent = False
            return done

    def close(self, timeout: float) -> int:
        """Flush, stop, and write what is left to the run's folder; gives how many items that is."""
        self.flush(timeout)
        with self._change:
            self._closed = True
            self._change.notify_all()
            left = [*self._kept, *self._items]
        self._thread.join(1.0)  # it may hang in a request, but does not keep the process alive
        kept = self._save(left)
        if not left:
            shutil.rmtree(self._folder / STAGED, ignore_errors=True)
        else:
            _log.warning(
                "%d records could not be sent to MLflow (%s)%s",
                len(left),
                one_line(self._last_error, 600),
                f"; {printable(str(self._folder / UNSENT))} keeps them until the run is started again"
                if kept
                else " and are lost",
            )
        return len(left)

    def _loop(self) -> None:
        pause = self._every
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or (self._urgent and bool(self._items)), pause)
            pause = self._every
            while batch := self._next_batch():
                if not self._deliver(batch):
                    time.sleep(min(self._every, 1.0))
                    pause = 2 * self._every
                    break
            if self._closed:
                return

    def _next_batch(self) -> list[Item]:
        """The next items that fit into one request; none once the outbox is closed."""
        batch: list[Item] = []
        with self._change:
            if self._closed:
                return []
            others = [item for item in self._items if item["kind"] != "artifact"] if self._held_up else []
            for item in others or self._items:
                alone = item["kind"] not in ("metric", "tag")
                if len(batch) == _BATCH or (alone and batch):
                    break
                batch.append(item)
                if alone:
                    break
        return batch

    def _deliver(self, batch: list[Item]) -> bool:
        """Send items of the queue, and take them out of it; False if they have to be sent again."""
        copy, sent = Path(batch[0]["path"]) if batch[0]["kind"] == "artifact" else None, True
        try:
            if copy and not copy.exists():  # a process was killed after it had sent it, or somebody removed it
                _log.warning("%s: is gone, so MLflow does not get it", printable(str(copy)))
            else:
                self._send(batch)
        except Refused as error:
            if len(batch) > 1:  # the others may be taken
                half = len(batch) // 2
                return self._deliver(batch[:half]) and self._deliver(batch[half:])
            self._say_refused(str(error))
            self._put_aside(batch[0], str(error))
        except Gone as error:
            self._say_refused(str(error))
            self._kept += batch
            sent = False
        except Exception as error:
            self._last_error = str(error)
            if copy:
                self._held_up = str(error)
            self._save([*self._kept, *self.waiting])
            return False
        if copy:
            self._held_up = ""
        elif self._held_up and self._held_up != self._said:  # the store answers, but does not take the file; once
            self._said = self._held_up
            _log.warning("MLflow does not take a file, which is kept and sent again: %s", one_line(self._said, 600))
        with self._change:
            for item in batch:
                self._items.remove(item)
            self._change.notify_all()
            left = [*self._kept, *self._items]
            if self._closed:  # `close` keeps these items in the file, so the copy has to stay
                return True
        if self._written:
            self._save(left)
        if copy and sent and copy.exists():
            shutil.rmtree(copy.parent, ignore_errors=True)  # last: the file no longer names it
        return True

    def _say_refused(self, why: str) -> None:
        if why != self._last_error:  # once, not every second
            _log.warning("MLflow refuses records, which are kept: %s", one_line(why, 600))
        self._last_error = why

    def _put_aside(self, item: Item, why: str) -> None:
        """Write a refused item to the file of those, with the copy of a file beside it."""
        self._refusals.append(why)
        path = self._folder / REFUSED
        try:
            with files.naming(path):
                if item["kind"] == "artifact":
                    copy, aside = Path(item["path"]).parent, self._folder / REFUSED_FILES
                    aside.mkdir(exist_ok=True)
                    os.replace(copy, aside / copy.name)
                with path.open("a", encoding="utf-8") as out:
                    out.write(json.dumps({**item, "refused": one_line(why, 600)}) + "\n")
        except OSError as error:  # as in `_save`
            _log.warning("%s; a record that MLflow refused is lost", one_line(error, 600))

    def _save(self, items: list[Item]) -> bool:
        """Write the items to the run's folder; gives whether they are there."""
        path = self._folder / UNSENT
        try:
            if not items:
                path.unlink(missing_ok=True)
            else:
                files.write_text(path, "".join(json.dumps(item) + "\n" for item in items))
            self._written = bool(items)
        except OSError as error:  # such as a full disk, which must not end the training
            if not self._warned:  # once, not every second
                _log.warning(
                    "%s; until then, what is not yet sent to MLflow is kept in memory only",
                    one_line(error if isinstance(error, files.DiskFullError) else f"{path}: {error.strerror}", 600),
                )
            self._warned = True
            return False
        self._warned = False
        return True


def refused_line(folder: Path, what: str) -> str:
    """The line on records that MLflow refused for good.

    Args:
        folder: the run's.
        what: "2 records", with the reason if it is known; each is in the file with its own.
    """
    return (
        f"MLflow refused {what}; they are in {printable(str(folder / REFUSED))} and not sent again, unless you rename "
        f"that file to {UNSENT} (and the folder {REFUSED_FILES} beside it to {STAGED})"
    )


def discard(folder: Path) -> None:
    """Remove what a run's folder holds for an MLflow run that is not its own any more, with a warning."""
    path = folder / UNSENT
    if path.exists():
        _log.warning("%s: is of an earlier MLflow run, which does not get it; removed", printable(str(path)))
        path.unlink()
    (folder / REFUSED).unlink(missing_ok=True)
    for copies in (STAGED, REFUSED_FILES):
        shutil.rmtree(folder / copies, ignore_errors=True)


def _unsent(path: Path) -> list[Item]:
    """What an earlier process could not send."""
    if not path.exists():
        return []
    remedy = "remove the file, and what it holds is not sent"
    lines = parsing.read_bytes(path, _BYTES, error=TrackingError, remedy=remedy).splitlines()
    shape = cast("type[Item]", Annotated[_Metric | _Tag | _Artifact | _Status, Field(discriminator="kind")])
    items = [
        parsing.parse_json(line, shape, source=f"{path}: line {number}", error=TrackingError, remedy=remedy)
        for number, line in enumerate(lines, start=1)
    ]
    for item in items:
        if item["kind"] == "artifact":
            item["path"] = str(_staged(Path(item["path"]), path, remedy))
    return items


def _staged(copy: Path, path: Path, remedy: str) -> Path:
    """The copy of a file that waits to be sent, in the folder of the run; its folder is removed once it is sent."""
    staged = path.with_name(STAGED)
    found = staged / copy.parent.name / copy.name  # the run's folder may have been moved since
    if found.parent.parent != staged or found.resolve().parent.parent != staged.resolve():
        raise TrackingError(f"{path}: {copy} is none of the files in {staged}; {remedy}")
    return found
