"""Learning curves and t-SNE as the page holds them: an image with its text alternative."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2sm.features import Features
from pipelines.comparison.figures import curves, tsne
from pipelines.comparison.report.pictures import data_uri
from pipelines.comparison.rows import Row, short_names

_MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Figure:
    """A figure of the page; `alt` is its text alternative, `uri` its image as a data URI."""

    title: str
    alt: str
    caption: str
    uri: str


def figures(rows: Sequence[Row], phi: Features, *, quiet: bool = False) -> list[Figure]:
    """Learning curves and t-SNE, drawn afresh.

    Args:
        phi: from `tsne.check`.

    Raises:
        RunsError, DataError, CheckpointError: one line each.
    """
    with tempfile.TemporaryDirectory(prefix="d2sm-report-") as folder:
        convergence = curves.draw(rows, Path(folder) / "convergence")
        embedding, numbers = tsne.draw(rows, Path(folder) / "tsne", phi, quiet=quiet)
        distances = [f"{key.partition('.')[2]} {x:.3f}" for key, x in numbers.items() if key.startswith("distance.")]
        return [
            Figure(
                "Convergence",
                f"Line charts of the training losses over steps and over time. {_last_losses(rows)}",
                "Training losses. Time is wall-clock time; it depends on the machine and on its load.",
                _smaller(convergence),
            ),
            Figure(
                "t-SNE of Phi's features",
                "Scatter plot of the noisy, restored and clean samples. "
                f"Mean distance to the clean counterpart: {', '.join(distances)}.",
                "Each point is a crop or a patch. t-SNE keeps neighbours together, but not distances to scale; the "
                "numbers were measured before it.",
                _smaller(embedding),
            ),
        ]


def _smaller(files: Sequence[Path]) -> str:
    """The smaller of a figure's files as a data URI: an SVG grows with the number of points, a PNG with its area."""
    path = min(files, key=lambda file: file.stat().st_size)
    return data_uri(path.read_bytes(), _MEDIA_TYPES[path.suffix])


def _last_losses(rows: Sequence[Row]) -> str:
    """The L1 loss at the end of training, in words."""
    ends = []
    for name, row in zip(short_names([row.config for row in rows]), rows, strict=True):
        losses = [curves.history(run).get("loss.l1") for run in row.runs]
        last = [float(np.mean(loss.values[-max(1, len(loss.values) // 10) :])) for loss in losses if loss]
        if last:
            ends.append(f"{name} {np.mean(last):.4f}")
    return f"L1 over the last tenth: {', '.join(ends)}." if ends else ""
