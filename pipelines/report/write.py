"""report: finished runs to one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipelines import runs
from pipelines.figures.scene import scenes
from pipelines.report.page import html
from pipelines.report.shots import ReportError


def report(folders: Sequence[str | Path], *, out: Path, pictures: int = 4) -> Path:
    """Write the report of some finished runs.

    Args:
        folders: of the runs.
        out: the file to write; one that is there is replaced.
        pictures: at most so many photographs; 0 leaves them out.

    Returns:
        The file, as an absolute path.

    Raises:
        RunsError, ReportError, DataError, SegmenterError, CheckpointError: one line each.
    """
    out = _place(out)
    if pictures < 0:
        raise ReportError(f"--pictures {pictures}: give 0 or more")
    rows = runs.gather(folders)
    found = scenes(rows, count=pictures) if pictures else []
    text = html(rows, found, [], written=datetime.now(UTC))
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(out)
    return out


def _place(out: Path) -> Path:
    """Said before the work, not after it."""
    out = out.expanduser().absolute()
    if out.is_dir():
        raise ReportError(f"--out {out}: is a folder; give a file, such as {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out
