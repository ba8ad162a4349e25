"""Which files of a folder are photographs: one rule, for training, evaluation, `prepare` and `denoise`.

A photograph is a file, at any depth, whose suffix names one of the formats that are read, in upper or lower case, and
whose name does not begin with a dot. Folders whose name begins with a dot are not searched. A folder is a folder
whatever its name (`album.png/`). Links to files and to folders are followed; a folder that is reached twice is
searched once, so a circle of links ends. A named pipe, a device or a link to nothing with such a name is not left out
here: opening it gives the one line that says what it is (`images.read_rgb`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.data.images import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
"""Suffixes of photographs, in lower case."""

_FOREIGN = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),  # of cameras
)


def is_photograph(path: Path) -> bool:
    """Whether a file's name is that of a photograph."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def is_foreign(path: Path) -> bool:
    """Whether a file's name is that of an image in a format that is not read."""
    return path.suffix.lower() in _FOREIGN and not path.name.startswith(".")


def photographs(top: Path, *, unreadable: Callable[[Path, str], None] | None = None) -> list[Path]:
    """The photographs below a folder, sorted by folder, then by name.

    Args:
        unreadable: called for each folder that cannot be read, with the folder and one line that names it; None: the
            first one is raised.

    Raises:
        DataError: a folder that cannot be read.
    """
    return [path for path in walk(top, unreadable=unreadable) if is_photograph(path)]


def walk(top: Path, *, unreadable: Callable[[Path, str], None] | None = None) -> Iterator[Path]:
    """All files below a folder that are not hidden, in the order of `photographs`, which explains the arguments."""

    def failed(error: OSError) -> None:
        line = f"{error.filename}: {error.strerror}; make the folder readable"
        if unreadable is None:
            raise DataError(line)
        unreadable(Path(error.filename), line)

    seen: set[str] = set()
    for folder, folders, files in os.walk(top, followlinks=True, onerror=failed):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))
        seen.add(real)
