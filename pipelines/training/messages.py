"""From the workers to the driver: an actor that holds what they say, and the thread that reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Entry = dict[str, Any]


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds the workers' entries until the driver has them; a worker never waits for it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.gone = 0
        self.ending = False
        self.reason: str | None = None

    def put(self, entry: Entry) -> None:
        self.entries.append(entry)

    def end(self) -> None:
        """The driver wants the run to end."""
        self.ending = True

    def ends(self) -> bool:
        return self.ending

    def fail(self, reason: str) -> None:
        """A worker cannot go on, and would fail again if it were started again."""
        self.reason = reason

    def failed(self) -> str | None:
        return self.reason

    def after(self, known: int) -> list[Entry]:
        """The entries after the first `known`, which may be forgotten; those of an answer that was lost come again."""
        del self.entries[: known - self.gone]
        self.gone = known
        return list(self.entries)


class Reader:
    """A thread that hands the mailbox's entries to `on_entry`, in order, while the block runs.

    Args:
        on_entry: called with an entry.
        between: called after each look into the mailbox.
    """

    def __init__(
        self, on_entry: Callable[[Entry], None], between: Callable[[], None] = lambda: None, *, every: float = 0.5
    ) -> None:
        self.on_entry, self.between, self.every = on_entry, between, every
        # Beside the driver: on another node it would be lost with that node, and the run would go on without a log.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self.known = 0
        self.done = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def __enter__(self) -> Reader:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.done.set()
        self.thread.join()
        ray.kill(self.mailbox)
        if self.error is not None and kind is None:
            raise self.error

    def _loop(self) -> None:
        while True:
            last = self.done.wait(self.every)
            try:
                entries = ray.get(self.mailbox.after.remote(self.known), timeout=30)
            except ray.exceptions.RayError:
                entries = []  # a busy machine; if Ray itself is gone, training says so
            self.known += len(entries)
            try:
                for entry in entries:
                    self.on_entry(entry)
                self.between()
            except Exception as error:  # raised where the block ends; a thread's own would be lost
                self.error = error
                return
            if last:
                return
