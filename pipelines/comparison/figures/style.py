"""The look of every figure: one colour, marker and line a row; and how a figure is saved."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure

from pipelines.comparison.photographs import CLEAN, NOISY

LineStyle = Literal["-", "--", ":", "-."]
# The palette of Okabe and Ito, made for colour-blind readers, without its yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "^", "s", "v", "D", "P", "*")
_GREY, _BLACK = "#8C8C8C", "#000000"
_LINES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
rcParams["text.parse_math"] = False  # a dollar in a name is a dollar
SIZE = 13  # points, of most text: legible when a figure is printed at half its size


@dataclass(frozen=True)
class Style:
    """How a row, or the noisy or clean version of a photograph, is drawn."""

    colour: str
    marker: str
    line: LineStyle = "-"


def of_rows(names: Sequence[str]) -> dict[str, Style]:
    """A style for each row; from the seventh row on, colours repeat with another line and marker."""
    return {
        name: Style(
            _COLOURS[at % len(_COLOURS)],
            _MARKERS[at % len(_MARKERS)],
            _LINES[at // len(_COLOURS) % len(_LINES)],
        )
        for at, name in enumerate(names)
    }


def of_versions(names: Sequence[str]) -> dict[str, Style]:
    """Styles for noisy, the rows, clean."""
    return {NOISY: Style(_GREY, "x"), **of_rows(names), CLEAN: Style(_BLACK, "+")}


def figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def caption(drawn: Figure, lines: Sequence[str], *, size: float) -> None:
    """Text below a figure, of `size` points, wrapped to its width; every item of `lines` begins a new line."""
    characters = int(drawn.get_figwidth() * 72 / (0.6 * size))  # the mean width of a character is 0.57 of its size
    drawn.supxlabel("\n".join(part for line in lines for part in textwrap.wrap(line, characters)), fontsize=size)


def save(drawn: Figure, path: Path, *, vector: bool = True) -> list[Path]:
    """Write path.png and, if `vector`, path.svg; gives their paths. The same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.png")]
    drawn.savefig(written[0], dpi=150)
    if vector:
        written.append(path.with_name(f"{path.name}.svg"))
        with rc_context({"svg.hashsalt": path.name}):
            drawn.savefig(written[1], metadata={"Date": None})
    return written
