"""The page itself: rows, scenes and figures to one HTML text that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipelines.comparison.figures.scene import Scene, names
from pipelines.comparison.report import numbers, shots
from pipelines.comparison.report.drawings import Drawing
from pipelines.comparison.rows import DIGITS, Row

LIMIT = 10_000_000
"""Characters that a page may have."""

_HERE = Path(__file__).parent
_PAGE = 500_000  # of them left for everything but pictures and figures


def html(rows: Sequence[Row], scenes: Sequence[Scene], figures: Sequence[Drawing], *, written: datetime) -> str:
    """The report as one HTML file.

    Args:
        rows: what `runs.gather` found, at least one.
        scenes: of the same rows; none leaves the pictures out.
        figures: likewise.
        written: the time to show.

    Raises:
        ReportError: more pictures than a page holds.
    """
    style, script = (Markup((_HERE / name).read_text()) for name in ("page.css", "page.js"))
    titles = names(rows)
    first = rows[0].runs[0]
    runs = [run for row in rows for run in row.runs]
    room = LIMIT - _PAGE - sum(len(figure.uri) for figure in figures)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        rows=list(zip(titles, rows, strict=True)),
        results=first.results,
        place=Path(first.config.data.root).name,
        runs=runs,
        recipes=list(dict.fromkeys(run.config.recipe or "none" for run in runs)),
        commits=list(dict.fromkeys(run.commit for run in runs)),
        keys=first.columns,
        metrics=DIGITS,
        number=numbers.number,
        table=numbers.table(rows, titles),
        bars={level: numbers.bars(rows, titles, level) for level in first.results.restored},
        scenes=shots.shown(scenes, limit=room),
        legend=shots.legend(scenes),
        figures=figures,
        written=written,
    )


def _hash(text: str) -> str:
    """What the page's Content-Security-Policy allows: this text and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
