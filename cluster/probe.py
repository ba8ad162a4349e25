"""What one node sees, reported by a task that runs on it. Imports nothing heavy, so the task takes milliseconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from d2sm import __version__
from pipelines.text import one_line

OURS = "driver"  # file in the trial folder, written by the driver


@dataclass(frozen=True)
class Ask:
    """What the driver asks every node."""

    root: str
    trial: str  # a folder in the storage, made by the driver for this check
    files: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A node's answer. An error is empty where there is none."""

    host: str
    versions: Mapping[str, str]
    root: tuple[str, ...] = ()
    root_error: str = ""
    storage_error: str = ""
    files: Mapping[str, int | None] = field(default_factory=dict)
    modules: Mapping[str, bool] = field(default_factory=dict)


def look(ask: Ask, node: str) -> Seen:
    """Answer for this node. `node` is the name of the file it writes into the trial folder."""
    root, root_error = _listed(ask.root)
    return Seen(
        host=socket.gethostname(),
        versions={
            "python": platform.python_version(),
            "d2sm": __version__,
            **{name: _version(name) for name in ("ray", "torch")},
        },
        root=root,
        root_error=root_error,
        storage_error=_written(ask.trial, node),
        files={name: _size(name) for name in ask.files},
        modules={name: _found(name) for name in ask.modules},
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _listed(root: str) -> tuple[tuple[str, ...], str]:
    try:
        return tuple(sorted(os.listdir(root))), ""
    except OSError as error:
        return (), error.strerror or type(error).__name__


def _written(trial: str, node: str) -> str:
    try:
        if "://" in trial:
            from pyarrow import fs

            from pipelines.runs.storage import opened

            place, path = opened(trial, asked_by="train.storage")
            if place.get_file_info(f"{path}/{OURS}").type == fs.FileType.NotFound:
                return "the driver's file is not there: this is another place of the same name"
            place.open_output_stream(f"{path}/{node}").close()
            return ""
        if not (Path(trial) / OURS).exists():
            missing = not Path(trial).parent.exists()
            return "no such folder" if missing else "another folder of the same name, not the driver's"
        (Path(trial) / node).write_text(node)
        return ""
    except (OSError, ValueError, ImportError) as error:
        return one_line(getattr(error, "strerror", None) or error, 200)


def _size(name: str) -> int | None:
    try:
        return os.stat(name).st_size
    except OSError:
        return None


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
