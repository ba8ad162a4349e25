"""Write a file or a folder whole or not at all.

What is written goes under a temporary name beside its target and gets the target's name by one rename, so that a reader
finds the former content or the new one, however and whenever the writer ends. A killed writer leaves its temporary
behind; it ends in `SUFFIX`, is hidden, and never counts as content.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"


@contextmanager
def replacing(
    path: Path, *, shared: bool = False, keep: bool = False, sync: bool = False, temporary: Path | None = None
) -> Iterator[Path]:
    """Yield the temporary path to write a file or a folder to; it becomes `path` when the block ends without error.

    On an error the temporary is removed and `path` stays as it was. A file is replaced in one step; a folder's former
    content is removed first, so for a moment there is none.

    Args:
        path: the file or folder to write; its parent must exist.
        shared: several processes may write this path at once, so each needs a temporary of its own. Otherwise the name
            is fixed, and the next writer overwrites what a killed one left.
        keep: where another process has finished `path` in the meantime, its work stays and this one's is dropped; for
            content that is the same whoever writes it.
        sync: force a file to the disk before the rename, so that it also survives a power cut.
        temporary: a name of the caller's own, on the same file system, for leftovers that are found by that name.

    Raises:
        OSError: it cannot be written.
    """
    if temporary is None:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{SUFFIX}" if shared else f".{path.name}{SUFFIX}")
    remove(temporary)
    try:
        yield temporary
        if sync:
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if keep and path.exists():
            return
        if temporary.is_dir() and not keep:
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(temporary, path)
        except OSError:
            if not (keep and path.exists()):
                raise
    finally:
        remove(temporary)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises OSError."""
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether this is the temporary of a writer, killed or still at work."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def sweep(folder: Path) -> list[Path]:
    """Remove the temporaries of killed writers from a folder that nobody writes to now; gives those removed."""
    found = [path for path in folder.glob(f".*{SUFFIX}") if is_leftover(path)]
    for path in found:
        remove(path)
    return found
