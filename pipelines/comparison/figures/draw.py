"""Draw the figures of finished runs, in a folder and in an MLflow run of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines import tracking
from pipelines.comparison import fronts
from pipelines.comparison.figures import crops, curves, front, tsne
from pipelines.comparison.mlflow_run import log_run
from pipelines.comparison.rows import check_trusted, read_rows
from pipelines.runtime.files import ready_folder
from pipelines.tracking import store

Figure = Literal["tsne", "comparison", "convergence", "front"]


@dataclass(frozen=True)
class Drawn:
    """The files, the numbers that the t-SNE figure shows, and the MLflow run that keeps both."""

    files: list[Path]
    numbers: Mapping[str, float]
    uri: str
    page: str


def draw_figures(
    folders: Sequence[str | Path],
    out: Path,
    *,
    only: Figure | None = None,
    trust: bool = False,
    quiet: bool = False,
) -> Drawn:
    """Draw the figures of finished runs, and log them as an MLflow run "figures".

    Args:
        folders: of the runs; those that differ in their seed alone are one row.
        out: folder for the PNG and SVG files and the numbers of fronts, made if it is not there; files of the same
            names are replaced.
        only: one figure; None: all, that of fronts only where there are some.
        trust: see `rows.read_run`.
        quiet: no progress line.

    Raises:
        RunsError, TrackingError, DataError, SegmenterError, CheckpointError, TrustError, OSError: one line each.
    """
    rows = read_rows(folders, trust=trust)
    check_trusted(rows)
    uri = rows[0].runs[0].uri
    client = store.prepare(uri)  # before the work: it fails when the store cannot be reached
    out = ready_folder(out.expanduser(), asked_by=f"--out {out}")  # before the work, too
    phi = tsne.check(rows) if only in (None, "tsne") else None  # likewise
    files: list[Path] = []
    numbers: dict[str, float] = {}
    if only == "front" or (only is None and fronts.are_there(rows)):
        files += front.draw(rows, out)
    if only in (None, "convergence"):
        files += curves.draw(rows, out / "convergence")
    if only in (None, "comparison"):
        files += crops.draw(rows, out, quiet=quiet)
    if phi is not None:
        written, numbers = tsne.draw(rows, out / "tsne", phi, quiet=quiet)
        files += written
    with store.plain_errors(uri, tracking.TrackingError):
        page = log_run(client, rows, files, numbers, name="figures")
    return Drawn(files, numbers, uri, page)
