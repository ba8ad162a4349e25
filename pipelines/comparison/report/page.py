"""The page itself: rows, photographs and figures become one HTML text that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipelines.comparison import render
from pipelines.comparison.photographs import ComparedPhotograph
from pipelines.comparison.report import pictures, tables
from pipelines.comparison.report.figures import Figure
from pipelines.comparison.rows import Row, short_names
from pipelines.runs.results import level_title

LIMIT = 10_000_000
"""Characters that a page may have."""

_FOLDER = Path(__file__).parent
_TEXT = 500_000  # characters of LIMIT that are kept for all that is neither photograph nor figure


def html(
    rows: Sequence[Row], photographs: Sequence[ComparedPhotograph], figures: Sequence[Figure], *, written: datetime
) -> str:
    """The report as one HTML file.

    Args:
        rows: from `rows.read_rows`, at least one.
        photographs: of the same rows; none leaves that section out.
        figures: likewise.
        written: the time to show.

    Raises:
        ReportError: more photographs than a page holds.
    """
    style, script = (Markup((_FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    first = rows[0].runs[0]
    runs = [run for row in rows for run in row.runs]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
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
        rows=list(zip(short_names([row.config for row in rows]), rows, strict=True)),
        results=first.results,
        dataset=Path(first.config.data.root).name,
        runs=runs,
        recipes=list(dict.fromkeys(run.config.recipe or "none" for run in runs)),
        commits=list(dict.fromkeys(run.commit for run in runs)),
        level_name=level_title,
        columns=first.columns,
        metrics=[title.removesuffix(" dB") for title in first.results.titles],
        number=tables.number,
        table=tables.table(rows),
        notes=render.interval_notes(rows),
        bars={level: tables.bars(rows, level) for level in first.results.restored},
        pictures=pictures.pictures(photographs, limit=LIMIT - _TEXT - sum(len(figure.uri) for figure in figures)),
        legend=pictures.legend(photographs),
        figures=figures,
        written=written,
    )


def _hash(text: str) -> str:
    """The source that the page's Content-Security-Policy allows: this text and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
