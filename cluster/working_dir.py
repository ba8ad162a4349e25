"""The working directory sent with a job: the code alone. Data, weights and runs stay on storage that nodes see."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CODE = ("d2sm", "pipelines", "tuning", "cluster")
PROJECT = "pyproject.toml"  # holds the version
LIMIT = 10 * 2**20  # the code is under 2 MB; whatever is larger is data or weights
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


class WorkingDirError(ValueError):
    """A file that cannot be sent with a job. One line."""


@contextmanager
def working_directory(include: Sequence[str | Path] = ()) -> Iterator[Path]:
    """A temporary folder with the code, as the working directory of a job.

    Args:
        include: more files and folders, such as a module with your own segmenter; each keeps its last name.

    Raises:
        WorkingDirError: a file is missing, a name occurs twice, or there are more than 10 MB.
    """
    from pipelines.tracking.run import COMMIT, commit  # imported when needed: help must stay quick

    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="d2sm-job-") as place:
        folder = Path(place)
        for name in CODE:
            shutil.copytree(root / name, folder / name, ignore=_LEFT_OUT)
        if (root / PROJECT).is_file():  # absent from an installed package
            shutil.copy(root / PROJECT, folder)
        revision, dirty = commit()
        (folder / COMMIT).write_text(f"{revision} {'dirty' if dirty else 'clean'}")
        for extra in map(Path, include):
            _add(extra, folder)
        _check_size(folder)
        yield folder


def _add(extra: Path, folder: Path) -> None:
    target = folder / extra.resolve().name
    if not extra.exists():
        raise WorkingDirError(f"{extra}: no such file or folder to send with the job")
    _check_size(extra)  # before a data set is copied
    if target.exists():
        raise WorkingDirError(f"{extra}: is sent with the job, which already has a {target.name}; give it another name")
    if extra.is_dir():
        shutil.copytree(extra, target, ignore=_LEFT_OUT)
    else:
        shutil.copy(extra, target)


def _copied(top: Path, within: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files that `copytree` would copy, which follows links.

    Args:
        within: the folders above, links resolved.

    Raises:
        WorkingDirError: a link to nothing, or to a folder that holds it; a pipe, or something else that is no file.
    """
    if top.is_file():
        yield top
        return
    remedy = "remove it, or name what is to be sent one by one"
    if not top.is_dir():
        what = "a link to nothing" if top.is_symlink() else "neither a file nor a folder"
        raise WorkingDirError(f"{top}: is {what}, so it cannot be sent with the job; {remedy}")
    if (here := top.resolve()) in within:
        raise WorkingDirError(f"{top}: is a link to {here}, a folder that holds it; {remedy}")
    names = sorted(path.name for path in top.iterdir())
    for name in names:
        if name not in _LEFT_OUT(str(top), names):
            yield from _copied(top / name, within | {here})


def _check_size(top: Path) -> None:
    total, largest, most = 0, top, 0
    for path in _copied(top):
        size = path.stat().st_size
        total += size
        if size > most:
            largest, most = path, size
        if total > LIMIT:
            raise WorkingDirError(
                f"{top}: more than {LIMIT >> 20} MB to send with the job (largest so far: {largest}, {most / 2**20:.1f}"
                " MB); put data and weights on storage that every node sees, and give their paths"
            )
