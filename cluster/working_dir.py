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
        raise WorkingDirError(f"--include {extra}: no such file or folder")
    _check_size(extra)  # before a data set is copied
    if target.exists():
        raise WorkingDirError(f"--include {extra}: the job already has a {target.name}; give it another name")
    if extra.is_dir():
        shutil.copytree(extra, target, ignore=_LEFT_OUT)
    else:
        shutil.copy(extra, target)


def _check_size(top: Path) -> None:
    total, largest, most = 0, top, 0
    for path in [top] if top.is_file() else top.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
        size = path.stat().st_size if path.is_file() and not hidden else 0
        total += size
        if size > most:
            largest, most = path, size
        if total > LIMIT:
            raise WorkingDirError(
                f"{top}: more than {LIMIT >> 20} MB to send with the job (largest so far: {largest}, {most / 2**20:.1f}"
                " MB); put data and weights on storage that every node sees, and give their paths"
            )
