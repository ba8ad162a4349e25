"""All figures of some finished runs, in a folder and in an MLflow run of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines import tracking
from pipelines.comparison import rows as runs
from pipelines.comparison.figures import comparison, curves, embedding
from pipelines.comparison.figures.scene import names
from pipelines.comparison.rows import Row
from pipelines.tracking import store
from pipelines.tracking.run import experiment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

Figure = Literal["tsne", "comparison", "convergence"]
FIGURES: tuple[Figure, ...] = ("tsne", "comparison", "convergence")
_NAME = "figures"


@dataclass(frozen=True)
class Drawn:
    """What was drawn, and where MLflow keeps it."""

    files: list[Path]
    numbers: Mapping[str, float]
    uri: str
    page: str


def draw(folders: Sequence[str | Path], out: Path, *, only: Figure | None = None) -> Drawn:
    """Draw the figures of finished runs, and log them.

    They compare runs, so they belong to none of them: they become a new MLflow run "figures" in the experiment of the
    first, which names all of them in its tags and description, and the runs' own records stay as they are.

    Args:
        folders: of the runs; those that differ in nothing but their seed are one row.
        out: folder for the PNG and SVG files, made if it is not there; files of the same names are replaced.
        only: one figure; None: all.

    Raises:
        RunsError, TrackingError, DataError, SegmenterError, CheckpointError: one line each.
    """
    rows = runs.gather(folders)
    first = rows[0].runs[0]
    client = store.prepare(first.uri)  # a store that cannot be had is said before the work
    files: list[Path] = []
    numbers: dict[str, float] = {}
    if only in (None, "convergence"):
        files += curves.draw(rows, out / "convergence")
    if only in (None, "comparison"):
        files += comparison.draw(rows, out)
    if only in (None, "tsne"):
        written, numbers = embedding.draw(rows, out / "tsne")
        files += written
    with store.plain_errors(first.uri, tracking.TrackingError):
        page = keep(client, rows, files, numbers, name=_NAME)
    return Drawn(files, numbers, first.uri, page)


def keep(
    client: MlflowClient, rows: Sequence[Row], files: Sequence[Path], numbers: Mapping[str, float], *, name: str
) -> str:
    """Log files and numbers as a new MLflow run of this name, beside those it compares; gives its page."""
    first = rows[0].runs[0]
    experiment = experiment_of(client, first.config.tracking.experiment, first.uri)
    ids = {name: [run.run_id for run in row.runs] for name, row in zip(names(rows), rows)}
    tags = {
        f"d2sm.{name}": json.dumps(ids),
        "mlflow.note.content": _note(rows, experiment),
        **tracking.provenance(),
    }
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    status = "FAILED"
    try:
        for key, value in numbers.items():
            client.log_metric(run_id, key, value)
        for path in files:
            client.log_artifact(run_id, str(path))
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return f"#/experiments/{experiment}/runs/{run_id}"


def _note(rows: Sequence[Row], experiment: str) -> str:
    """The description MLflow shows: every row with links to its runs."""
    lines = []
    for name, row in zip(names(rows), rows):
        links = [f"[seed {run.seed}](#/experiments/{experiment}/runs/{run.run_id})" for run in row.runs]
        lines.append(f"* {name}: `{row.label}`, {', '.join(links)}")
    return "\n".join(lines)
