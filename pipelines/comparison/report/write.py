"""report: finished runs to one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines import tracking
from pipelines.comparison import rows as runs
from pipelines.comparison.figures.job import keep
from pipelines.comparison.figures.scene import scenes
from pipelines.comparison.report.drawings import drawings
from pipelines.comparison.report.page import html
from pipelines.comparison.report.shots import ReportError
from pipelines.runtime import files
from pipelines.tracking import store


@dataclass(frozen=True)
class Report:
    """The file, and where MLflow keeps a copy."""

    path: Path
    uri: str
    page: str


def report(folders: Sequence[str | Path], *, out: Path, pictures: int = 4, draw: bool = True) -> Report:
    """Write the report of some finished runs, and log it as an MLflow run "report" beside them.

    Args:
        folders: of the runs; those that differ in nothing but their seed are one row.
        out: the file to write; one that is there is replaced.
        pictures: at most so many photographs; 0 leaves them out.
        draw: whether curves and t-SNE are drawn, which takes the longest.

    Raises:
        RunsError, ReportError, TrackingError, DataError, SegmenterError, CheckpointError: one line each.
    """
    out = _place(out)
    if pictures < 0:
        raise ReportError(f"--pictures {pictures}: give 0 or more")
    rows = runs.gather(folders)
    uri = rows[0].runs[0].uri
    client = store.prepare(uri)  # a store that cannot be had is said before the work
    found = scenes(rows, count=pictures) if pictures else []
    text = html(rows, found, drawings(rows) if draw else [], written=datetime.now(UTC))
    files.write_text(out, text, shared=True)
    with store.plain_errors(uri, tracking.TrackingError):
        page = keep(client, rows, [out], {}, name="report")
    return Report(out, uri, page)


def _place(out: Path) -> Path:
    """Said before the work, not after it."""
    out = out.expanduser().absolute()
    if out.is_dir():
        raise ReportError(f"--out {out}: is a folder; give a file, such as {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out
