"""Which folders this user made on this machine.

A run's configuration may name a module to import, and Ray Tune's record of a sweep is a pickle. Both are as good as
code, so a folder is believed only if d2sm made it here, or if its user says so (`--trust`). A folder that is made gets
a mark: a code of its inode, and of the content of files that never change again, under a key that only this user can
read (~/.d2sm/key). A folder from elsewhere has no mark, or that of another key, another inode or other files. A folder
that is moved within its file system keeps its mark; a copy does not have one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from pipelines.runtime import files

MARK = ".made-here"
_KEY_BYTES = 32


def mark(folder: Path, *names: str) -> None:
    """Mark a folder as made here.

    Where the key cannot be kept (a home that is read-only), there is no mark: the folder then needs `--trust`.

    Args:
        names: of files in it, which keep their content from now on.
    """
    try:
        key = _key() or _new_key()
        files.write_text(folder / MARK, _code(key, folder, names))
    except OSError:
        return


def made_here(folder: Path, *names: str) -> bool:
    """Whether a folder was marked by this user on this machine, with these files as they are now."""
    try:
        if folder.lstat().st_uid != os.getuid() or (folder / MARK).stat().st_size > 200:
            return False
        key, found = _key(), (folder / MARK).read_text().strip()
        return key is not None and hmac.compare_digest(found, _code(key, folder, names))
    except (OSError, ValueError, TypeError):
        return False


def _code(key: bytes, folder: Path, names: Sequence[str]) -> str:
    facts = [str(folder.stat().st_ino), *(f"{name} {files.sha256(folder / name)}" for name in names)]
    return hmac.new(key, "\n".join(facts).encode(), hashlib.sha256).hexdigest()


def _path() -> Path:
    return Path.home() / ".d2sm" / "key"


def _key() -> bytes | None:
    """This user's key; None if there is none yet, or it is not this user's alone."""
    try:
        about = _path().lstat()
        private = stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077
        key = _path().read_bytes() if private else b""
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None


def _new_key() -> bytes:
    """Make the key, or take that which another process makes at the same time. Raises OSError."""
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".key-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(temporary, path)  # of several writers the first one's counts
        except FileExistsError:
            if _key() is None:  # one that others can read or that is damaged vouches for nothing
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    key = _key()
    if key is None:
        raise OSError(f"{path}: cannot be kept private")
    return key
