"""Write the report: finished runs compared in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines import tracking
from pipelines.comparison.figures import tsne
from pipelines.comparison.mlflow_run import log_run
from pipelines.comparison.photographs import compared_photographs
from pipelines.comparison.report.figures import figures
from pipelines.comparison.report.page import html
from pipelines.comparison.report.pictures import ReportError
from pipelines.comparison.rows import check_trusted, read_rows
from pipelines.runtime import files
from pipelines.tracking import store


@dataclass(frozen=True)
class Report:
    """The file, and the MLflow run that keeps a copy of it."""

    path: Path
    uri: str
    page: str


def write_report(
    folders: Sequence[str | Path],
    *,
    out: Path,
    pictures: int = 4,
    with_figures: bool = True,
    trust: bool = False,
    quiet: bool = False,
) -> Report:
    """Write the report of finished runs, and log it as an MLflow run "report".

    Args:
        folders: of the runs; those that differ in their seed alone are one row.
        out: the file to write; an existing one is replaced.
        pictures: at most so many photographs; 0: none.
        with_figures: draw learning curves and t-SNE, which takes the longest.
        trust: see `rows.read_run`.
        quiet: no progress line.

    Raises:
        RunsError, ReportError, TrackingError, DataError, SegmenterError, CheckpointError, TrustError, OSError: one line
            each.
    """
    out = out.expanduser().absolute()
    if out.is_dir():
        raise ReportError(f"--out {out}: is a folder; give a file, such as {out / 'report.html'}")
    if pictures < 0:
        raise ReportError(f"--pictures {pictures}: give 0 or more")
    files.ready_folder(out.parent, asked_by=f"--out {out}")
    rows = read_rows(folders, trust=trust)
    check_trusted(rows)
    uri = rows[0].runs[0].uri
    client = store.prepare(uri)  # before the work: it fails when the store cannot be reached
    phi = tsne.check(rows) if with_figures else None  # likewise
    photographs = compared_photographs(rows, count=pictures, quiet=quiet) if pictures else []
    page = html(rows, photographs, figures(rows, phi, quiet=quiet) if phi else [], written=datetime.now(UTC))
    files.write_text(out, page, shared=True)
    with store.plain_errors(uri, tracking.TrackingError):
        return Report(out, uri, log_run(client, rows, [out], {}, name="report"))
