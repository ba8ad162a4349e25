"""A report of small finished runs, and its HTML parsed."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from d2sm import metrics
from pipelines.comparison.photographs import ComparedPhotograph
from pipelines.comparison.report.figures import Figure
from pipelines.comparison.report.page import html
from pipelines.comparison.report.pictures import data_uri
from pipelines.comparison.rows import Row, read_rows, short_names
from pipelines.recipes import recipe
from tests.helpers.finished_runs import results, write_run

EVIL = "<script>alert(1)<"  # a name that would run as a script if the page did not escape it
WRITTEN = datetime(2026, 11, 23, 5, 40, tzinfo=UTC)
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><path d="M0 0L60 40" style="stroke:red"/></svg>'


def compared_rows(folder: Path) -> list[Row]:
    """L1 (26.0 and 27.0 dB at sigma 25) and D2SM (28.0 dB, one seed)."""
    l1, d2sm = recipe("ffdnet_l1_cpu"), recipe("ffdnet_d2sm_cpu")
    return read_rows(
        [
            write_run(folder / EVIL, l1, results(26.0)),
            write_run(folder / "b", l1.replace({"train.seed": 1}), results(27.0)),
            write_run(folder / "c", d2sm, results(28.0, 0.65)),
        ]
    )


def photograph(rows: list[Row], name: str = "street/one", size: tuple[int, int] = (60, 80)) -> ComparedPhotograph:
    """Sky over road, (height, width) large; from noisy over the rows to clean, each version has less noise."""
    classes = np.zeros(size, np.uint8)
    classes[: size[0] // 2] = metrics.CLASSES.index("sky")
    clean = metrics.COLOURS[classes] // 2 + 60
    versions = ["noisy", *short_names([row.config for row in rows]), "clean"]
    noise = np.random.default_rng(0).normal(size=(*size, 3))
    images = {
        version: (clean + noise * 15 * (len(versions) - 1 - index)).clip(0, 255).astype(np.uint8)
        for index, version in enumerate(versions)
    }
    return ComparedPhotograph(name, "35", images, dict.fromkeys(versions, classes))


def page(rows: list[Row]) -> str:
    """The report of rows with two photographs and one figure."""
    figure = Figure("t-SNE", f"Four clouds {EVIL}", "Features of Phi.", data_uri(_SVG, "image/svg+xml"))
    return html(rows, [photograph(rows), photograph(rows, f"two {EVIL}")], [figure], written=WRITTEN)


class ParsedPage(HTMLParser):
    """A page's elements with their attributes, its text, and apart from that its scripts and styles (`raw`, by tag)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.raw[self.cdata_elem] = self.raw.get(self.cdata_elem, "") + data
        else:
            self.text = f"{self.text} {' '.join(data.split())}".strip()
