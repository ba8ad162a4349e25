"""What still has to reach MLflow: an ordered queue, and the one thread that empties it.

Training never waits for the tracking server. While it is away, what waits is kept in memory and in a file of
the run folder, tried again every few seconds, and read back when the run is resumed.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipelines.runtime import files

Item = dict[str, Any]
"""One record, as it stands in the file: {"kind": "metric"|"tag"|"artifact"|"status", ...}."""

UNSENT = "mlflow-unsent.jsonl"
STAGED = "mlflow-unsent"  # copies of files on their way: the caller may delete or overwrite the originals

_BATCH = 500
_log = logging.getLogger(__name__)


class Refused(Exception):
    """The server answered, and will never take this record; trying again is no use."""


class Outbox:
    """Sends items in order in a thread of its own.

    Args:
        send: called with up to 500 metrics and tags, or with one artifact or status. Raises `Refused` for
            what is never going to be taken, anything else to be tried again.
        folder: the run folder, for what could not be sent.
        every: seconds between two sendings when nobody waits.
    """

    def __init__(self, send: Callable[[list[Item]], None], folder: Path, *, every: float = 1.0) -> None:
        self._send, self._folder, self._every = send, folder, every
        self._items: deque[Item] = deque()
        self._refused: list[Item] = []
        self._change = threading.Condition()
        self._urgent = self._closed = self._written = False
        self._trouble = ""
        self._copies = 0
        for item in _read(folder / UNSENT):
            self._items.append(item)
            self._written = True
        self._thread = threading.Thread(target=self._loop, name="mlflow outbox", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> list[Item]:
        """The items not yet sent."""
        with self._change:
            return list(self._items)

    def put(self, items: Iterable[Item]) -> None:
        """Queue items; returns at once."""
        with self._change:
            self._items.extend(items)

    def stage(self, name: str) -> Path:
        """A path in the run folder for a file on its way; it is removed once sent."""
        with self._change:
            self._copies += 1
            folder = self._folder / STAGED / f"{time.time_ns():x}-{self._copies}"
        folder.mkdir(parents=True)
        return folder / name

    def flush(self, timeout: float) -> bool:
        """Send now and wait at most `timeout` seconds; whether all is sent."""
        with self._change:
            self._urgent = True
            self._change.notify_all()
            done = self._change.wait_for(lambda: not self._items, timeout)
            self._urgent = False
            return done

    def close(self, timeout: float) -> int:
        """Flush, stop, and write what is left to the run folder; how many records that is."""
        self.flush(timeout)
        with self._change:
            self._closed = True
            self._change.notify_all()
            left = [*self._refused, *self._items]
        self._thread.join(1.0)  # it may hang in a request; it is a daemon
        self._save(left)
        if not left:
            shutil.rmtree(self._folder / STAGED, ignore_errors=True)
        else:
            _log.warning(
                "%d records did not reach MLflow (%s); they are in %s, sent when the run is started again",
                len(left),
                self._trouble,
                self._folder / UNSENT,
            )
        return len(left)

    def _loop(self) -> None:
        pause = self._every
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or (self._urgent and bool(self._items)), pause)
            pause = self._every
            while batch := self._head():
                if not self._deliver(batch):
                    time.sleep(min(self._every, 1.0))
                    pause = 2 * self._every
                    break
            if self._closed:
                return

    def _head(self) -> list[Item]:
        """The first items that can go in one request; none once closed."""
        batch: list[Item] = []
        with self._change:
            if self._closed:
                return []
            for item in self._items:
                alone = item["kind"] not in ("metric", "tag")
                if len(batch) == _BATCH or (alone and batch):
                    break
                batch.append(item)
                if alone:
                    break
        return batch

    def _deliver(self, batch: list[Item]) -> bool:
        try:
            self._send(batch)
        except Refused as error:
            self._trouble = str(error)
            self._refused += batch
            _log.warning("MLflow refuses %d records: %s", len(batch), error)
        except Exception as error:
            self._trouble = str(error)
            self._save([*self._refused, *self.waiting])
            return False
        with self._change:
            for _ in batch:
                self._items.popleft()
            self._change.notify_all()
            left = [*self._refused, *self._items]
        if self._written and not self._closed:
            self._save(left)
        return True

    def _save(self, items: list[Item]) -> None:
        path = self._folder / UNSENT
        try:
            if not items:
                path.unlink(missing_ok=True)
            else:
                files.write_text(path, "".join(json.dumps(item) + "\n" for item in items))
            self._written = bool(items)
        except OSError as error:  # a full disk must not end the training as well
            _log.warning("%s: %s; what waits for MLflow is in memory only", path, error.strerror)


def _read(path: Path) -> list[Item]:
    """What an earlier process left. A status is dropped: it was that process's own."""
    if not path.exists():
        return []
    items = [json.loads(line) for line in path.read_text().splitlines()]
    return [item for item in items if item["kind"] != "status"]
