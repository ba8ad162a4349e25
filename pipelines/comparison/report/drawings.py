"""Curves and t-SNE as the page shows them: a drawing with its text alternative."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.comparison.figures import curves, embedding
from pipelines.comparison.figures.scene import names
from pipelines.comparison.report import shots
from pipelines.comparison.rows import Row

_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Drawing:
    """A figure; `kind` is its media type, such as image/svg+xml."""

    title: str
    alt: str
    caption: str
    kind: str
    data: bytes

    @property
    def uri(self) -> str:
        return shots.uri(self.data, self.kind)


def drawings(rows: Sequence[Row]) -> list[Drawing]:
    """Both, drawn anew.

    Raises:
        RunsError, DataError, CheckpointError: one line each.
    """
    with tempfile.TemporaryDirectory(prefix="d2sm-report-") as place:
        written = curves.draw(rows, Path(place) / "convergence")
        tsne, found = embedding.draw(rows, Path(place) / "tsne")
        return [
            _drawing(
                written,
                "Convergence",
                f"Lines of the training losses against steps and time. {_ends(rows)}",
                "Training losses. Time is the machine's, with whatever else ran on it.",
            ),
            _drawing(
                tsne,
                "t-SNE of Phi's features",
                f"Clouds of points: noisy, each setting, clean. {_distances(found)}",
                "Each point is a crop or patch. t-SNE shows who is near whom; the numbers were taken before it.",
            ),
        ]


def _drawing(written: Sequence[Path], title: str, alt: str, caption: str) -> Drawing:
    """Of the files of one figure the smallest: an SVG grows with its points, a PNG with its area."""
    path = min((path for path in written if path.suffix in _KINDS), key=lambda path: path.stat().st_size)
    return Drawing(title, alt, caption, _KINDS[path.suffix], path.read_bytes())


def _ends(rows: Sequence[Row]) -> str:
    """The L1 loss at the end of training, in words."""
    ends = []
    for name, row in zip(names(rows), rows):
        found = [curves.history(run).get("loss.l1") for run in row.runs]
        last = [float(np.mean(curve.values[-max(1, len(curve.values) // 10) :])) for curve in found if curve]
        if last:
            ends.append(f"{name} {np.mean(last):.4f}")
    return f"L1 over the last tenth: {', '.join(ends)}." if ends else ""


def _distances(found: Mapping[str, float]) -> str:
    shown = [f"{key.partition('.')[2]} {value:.3f}" for key, value in found.items() if key.startswith("distance.")]
    return f"Mean distance to the clean counterpart: {', '.join(shown)}."
