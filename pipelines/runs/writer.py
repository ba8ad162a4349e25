"""Checkpoints written beside training: the steps wait for a copy of the tensors in memory, and for no disk."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pipelines.config import Config
from pipelines.runs import checkpoint, storage
from pipelines.runtime import files


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, in a thread; the newest `keep` stay.

    A folder gets its name when everything is in it, so a kill at any moment leaves whole checkpoints and parts that do
    not count; at a URI the file that vouches for the others comes last. Whoever asks for a second checkpoint before the
    first is written waits for it: memory holds one copy. What goes wrong in the thread is raised then, or at the end.

    Args:
        place: the run's folder, or its URI.
        keep: how many checkpoints stay.
    """

    def __init__(self, place: str, keep: int) -> None:
        self.place, self.keep = place, keep
        self.folder = storage.copy_of(place) if storage.is_uri(place) else Path(place)
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
        """Copy what makes a checkpoint, and have it written; see `checkpoint.write` for the parts.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        parts = {"weights": copied(weights), "state": copied(state), "config": config, "meta": meta, "log": log}
        self._thread = threading.Thread(target=self._write, args=(step, parts), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all that was asked for is written.

        Raises:
            OSError: it could not be.
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
        elif self._thread is not None:  # one under way is of use to whoever goes on; the first error is the one to show
            self._thread.join()

    def _write(self, step: int, parts: Mapping[str, Any]) -> None:
        name = checkpoint.name_of(step)
        try:
            for old in self.folder.glob(".step-*"):  # of a writer that was killed
                shutil.rmtree(old)
            # A folder of this name is there only if it is incomplete: training would have gone on from it otherwise.
            with files.replacing(self.folder / name, temporary=self.folder / f".{name}") as unfinished:
                checkpoint.write(unfinished, **parts)
            checkpoint.prune(self.folder, self.keep)
            if storage.is_uri(self.place):
                storage.put_checkpoint(self.folder / name, storage.joined(self.place, name))
                storage.prune(self.place, self.keep)
        except Exception as error:
            self._error = error


def copied(tree: Any) -> Any:
    """The same tree, its tensors copied to the CPU, so that training may change its own."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copied(value) for value in tree)
    return tree
