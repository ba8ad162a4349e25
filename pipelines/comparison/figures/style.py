"""One colour and one mark a row, in every figure; and how a figure is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipelines.comparison.figures.scene import CLEAN, NOISY

Line = Literal["-", "--", ":", "-."]
# Okabe and Ito's colours, which the colour-blind tell apart; their yellow is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = ("o", "^", "s", "v", "D", "P", "*")
_GREY, _BLACK = "#8C8C8C", "#000000"
_LINES: tuple[Line, ...] = ("-", "--", ":", "-.")
SIZE = 13  # points, of all text: still read at half the size


@dataclass(frozen=True)
class Style:
    """How a kind of image is drawn."""

    colour: str
    mark: str
    line: Line = "-"


def of_rows(names: Sequence[str]) -> dict[str, Style]:
    """A style for each row; after six rows colours come back with another line and mark."""
    return {
        name: Style(_COLOURS[at % len(_COLOURS)], _MARKS[at % len(_MARKS)], _LINES[at // len(_COLOURS) % len(_LINES)])
        for at, name in enumerate(names)
    }


def of_kinds(names: Sequence[str]) -> dict[str, Style]:
    """Likewise for noisy, the rows, clean."""
    return {NOISY: Style(_GREY, "x"), **of_rows(names), CLEAN: Style(_BLACK, "+")}


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: Path, *, vector: bool = True) -> list[Path]:
    """Write path.png, and path.svg beside it unless it is made of photographs. Nothing in them tells the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.png")]
    drawn.savefig(written[0], dpi=150)
    if vector:
        written.append(path.with_name(f"{path.name}.svg"))
        with rc_context({"svg.hashsalt": path.name}):
            drawn.savefig(written[1], metadata={"Date": None})
    return written
