"""Write a file or a folder whole or not at all.

What is written goes under a temporary name beside its target and gets the target's name by one rename, so that a reader
finds the former content or the new one, however and whenever the writer ends. A killed writer leaves its temporary
behind; it ends in `SUFFIX`, is hidden, and never counts as content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"
LONGEST_NAME = 255
"""Bytes of one name: what Linux's file systems take."""


class DiskFullError(OSError):
    """No space is left for a file. One line: its path, how much is free, the remedy."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block, the system's error on a full disk, which names no file, becomes one that names this path.

    Raises:
        DiskFullError: the disk or a quota is used up, or the file is larger than the limit of this process.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise disk_full(path, error.errno) from None


def disk_full(path: Path, number: int = errno.ENOSPC) -> DiskFullError:
    """The error that there is no space for a file.

    Args:
        number: the system's error number.
    """
    if number == errno.EFBIG:
        why = "would be larger than this process may write (ulimit -f); raise the limit"
    elif number == errno.EDQUOT:
        why = "the quota on its disk is used up; free some space"
    else:
        why = f"no space left on its disk ({free(path)}); free some space"
    return DiskFullError(f"{path}: {why}, and run the same command again")


def free(path: Path) -> str:
    """How much is free on the disk of a path, which need not exist: "3 MiB of 10 GiB are free"."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    usage = shutil.disk_usage(there)

    def size(amount: int) -> str:
        return f"{amount / 2**30:.3g} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"

    return f"{size(usage.free)} of {size(usage.total)} are free"


@contextmanager
def replacing(
    path: Path, *, shared: bool = False, keep: bool = False, sync: bool = False, temporary: Path | None = None
) -> Iterator[Path]:
    """Yield the temporary path to write a file or a folder to; it becomes `path` when the block ends without error.

    On an error the temporary is removed and `path` stays as it was. A file is replaced in one step; a folder's former
    content is removed first, so for a moment there is none.

    Args:
        path: the file or folder to write; its parent must exist.
        shared: several processes may write this path at once, so each needs a temporary of its own. Otherwise its name
            follows from that of `path`, and the next writer overwrites what a killed one left.
        keep: where another process has finished `path` in the meantime, its work stays and this one's is dropped; for
            content that is the same whoever writes it.
        sync: force a file to the disk before the rename, so that it also survives a power cut.
        temporary: a name of the caller's own, on the same file system, for leftovers that are found by that name.

    Raises:
        DiskFullError: there is no space for it.
        OSError: it cannot be written.
    """
    if temporary is None:
        temporary = path.with_name(_temporary_name(path.name, shared=shared))
    remove(temporary)
    try:
        with naming(path):
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


def _temporary_name(name: str, *, shared: bool) -> str:
    """Never longer than the target's name may be: a digest stands for a name that leaves no room for the suffix."""
    if shared:
        return f".{uuid.uuid4().hex}{SUFFIX}"
    hidden = f".{name}{SUFFIX}"
    if len(os.fsencode(hidden)) <= LONGEST_NAME:
        return hidden
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}{SUFFIX}"


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises OSError."""
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cache() -> Path:
    """The folder of this user for what is downloaded, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "d2sm"


@contextmanager
def caching(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, which its owner alone can enter; errors of writing to it name the remedy.

    Raises:
        OSError: it cannot be made or written to, as in a read-only home folder.
    """
    try:
        if folder.is_relative_to(cache()):
            private_folder(cache())
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise
        raise OSError(
            f"{folder}: what is downloaded cannot be kept there ({error.strerror}); set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def private_folder(path: Path) -> Path:
    """A folder of d2sm's own in the user's home, which its owner alone can enter; made if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.stat()
    if found.st_uid == os.getuid() and found.st_mode & 0o077:  # made by an earlier version
        path.chmod(0o700)
    return path


def ready_folder(folder: Path, *, asked_by: str) -> Path:
    """Make a folder, if need be, for files that long work writes at its end.

    Args:
        asked_by: the option that gave it, or a file in it, for the message.

    Raises:
        OSError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "is a file, not a folder" if os.path.isfile(folder) else f"cannot be made ({error.strerror})"
        raise OSError(f"{asked_by}: {folder} {why}; give another place") from None
    if why := unwritable(folder):
        raise OSError(f"{asked_by}: {folder} cannot be written to ({why}); give another place, or make it writable")
    return folder


def unwritable(folder: Path) -> str:
    """Why no file can be made in a folder; "": one can.

    A temporary file is made, since permissions are not enough: root has all of them, on a read-only file system too.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


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
