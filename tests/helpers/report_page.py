"""A report made of small finished runs, and its HTML parsed."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from d2sm import metrics
from pipelines.comparison import rows as runs
from pipelines.comparison.figures.scene import Scene, names
from pipelines.comparison.report.drawings import Drawing
from pipelines.comparison.report.page import html
from pipelines.comparison.rows import Row
from pipelines.recipes import recipe
from tests.helpers.finished_runs import finished, results


def compared(folder: Path) -> list[Row]:
    """L1 (26.0 and 27.0 dB at sigma 25) and D2SM (28.0, one seed)."""
    l1, d2sm = recipe("ffdnet_l1_cpu"), recipe("ffdnet_d2sm_cpu")
    return runs.gather(
        [
            finished(folder / EVIL, l1, results(26.0)),
            finished(folder / "b", l1.replace({"train.seed": 1}), results(27.0)),
            finished(folder / "c", d2sm, results(28.0, 0.65)),
        ]
    )


def page(rows: list[Row]) -> str:
    figure = Drawing("t-SNE", f"Four clouds {EVIL}", "Features of Phi.", "image/svg+xml", SVG)
    return html(rows, [scene(rows), scene(rows, f"two {EVIL}")], [figure], written=WHEN)


class Parsed(HTMLParser):
    """What a browser would make of it: elements with attributes, and text without scripts and styles."""

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


WHEN = datetime(2026, 11, 23, 5, 40, tzinfo=UTC)


EVIL = "<script>alert(1)<"


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><path d="M0 0L60 40" style="stroke:red"/></svg>'


def scene(rows: list[Row], name: str = "street/one", size: tuple[int, int] = (60, 80)) -> Scene:
    """Sky over road; the noisier an image, the further left it stands."""
    classes = np.zeros(size, np.uint8)
    classes[: size[0] // 2] = metrics.CLASSES.index("sky")
    clean = metrics.COLOURS[classes] // 2 + 60
    kinds = ["noisy", *names(rows), "clean"]
    noise = np.random.default_rng(0).normal(size=(*size, 3))
    images = {
        kind: (clean + noise * 15 * (len(kinds) - 1 - index)).clip(0, 255).astype(np.uint8)
        for index, kind in enumerate(kinds)
    }
    return Scene(name, "35", images, dict.fromkeys(kinds, classes))
