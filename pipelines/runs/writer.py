"""Checkpoints written while training goes on: a step waits for a copy of the tensors in memory, not for a disk."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pipelines.config import Config
from pipelines.runs import checkpoint, names
from pipelines.runs.folder import RunFolder


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, one at a time, and removes all but the newest.

    A checkpoint is written under a temporary name and renamed when it is complete. Saving a second one before the first
    is written waits for the first, so memory holds one copy of the tensors. An error in the thread is raised by the
    next call, or at the end of the `with` block.

    Args:
        folder: of the run.
        keep: how many checkpoints stay.
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._intact: set[str] = set()  # names of checkpoints, see RunFolder.prune
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        config: Config,
        meta: Mapping[str, Any],
        log: Mapping[str, Any],
    ) -> None:
        """Copy the parts of a checkpoint (see `checkpoint.write`) and write them in the thread.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        parts = {"weights": copied(weights), "state": copied(state), "config": config, "meta": meta, "log": log}
        self._thread = threading.Thread(target=self._write, args=(step, parts), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint under way is written.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:  # let it finish, to resume from; the block's own error is the one to show
            self._thread.join()

    def _write(self, step: int, parts: Mapping[str, Any]) -> None:
        path, name = self.folder.path, checkpoint.name_of(step)
        try:
            for leftover in names.unfinished(path):  # of a writer that was killed
                shutil.rmtree(leftover)
            with self.folder.adding(name) as unfinished:
                checkpoint.write(unfinished, **parts)
            self._intact.add(name)
            self.folder.prune(self.keep, self._intact)
        except Exception as error:
            self._error = error


def copied(tree: Any) -> Any:
    """Nested mappings and sequences with every tensor copied to the CPU, so that training may change its own."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copied(value) for value in tree)
    return tree
