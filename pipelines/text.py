"""Text for people: errors on one line, secrets left out, suggestions for misspelt names, aligned columns.

Imports the standard library alone, so that every module may import it, the configuration and the command line included.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TextIO

from pipelines.secrets import redact as redact  # what counts as a secret is said there


def printable(text: str) -> str:
    r"""The text with every character that a terminal might obey, or cannot show, written as an escape: \x1b, \n.

    For whatever comes from outside and is shown: names of files, runs and models, tags, the content of files. A line
    break is escaped too, since a line that looks like one of ours could follow it.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def show(text: object = "", *, file: TextIO | None = None) -> None:
    """Print text that may hold what comes from outside: its lines stay lines, and a terminal obeys none of it.

    Everything that this code prints goes through here.

    Args:
        file: None: stdout.
    """
    print("\n".join(printable(line.expandtabs()) for line in str(text).split("\n")), file=file, flush=True)


def markdown(text: str) -> str:
    """The text as Markdown that shows just this text: no HTML, links, emphasis or further cells of a table."""
    text = re.sub(r"([\\`*\[\]|!#~])", r"\\\1", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: str) -> str:
    """The text as a code span of Markdown, whatever it holds."""
    text = printable(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def how_to_install(extra: str) -> str:
    """How an extra of this project is installed."""
    return f"in the checkout, pip install -c pins.txt -e '.[{extra}]'"


def one_line(error: object, limit: int | None = 300) -> str:
    """An error, or any text, on one line: white space collapsed, secrets left out, only what a terminal can show.

    Args:
        error: an exception (its class's name where it has no message) or a text.
        limit: characters kept, followed by " ..."; None: all.
    """
    text = str(error)
    if isinstance(error, BaseException) and not text.strip():
        text = type(error).__name__
    text = printable(redact(" ".join(text.split())))
    return text if limit is None or len(text) <= limit else f"{text[:limit]} ..."


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The end of a message on an unknown name: "; did you mean X?", or "" when nothing is similar.

    Args:
        known: the valid names.
        cutoff: similarity from 0 (suggest the nearest in any case) to 1 that a suggestion needs (see `difflib`).
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The first names and how many there are besides: "a, b and 3 more"; "" for none."""
    names = list(names)
    left = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {left} more" if left > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in s: "1 run", "1,200 runs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def more(found: Collection[object]) -> str:
    """After the first of several things was named: " (and 3 more)"; "" when there is no other."""
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def columns(rows: Sequence[Sequence[str]], *, ruled: bool = False) -> str:
    """Rows of cells as lines of text, columns aligned on the left; all rows have as many cells as the first.

    Characters that a terminal might obey are escaped (`printable`).

    Args:
        ruled: draw a line of dashes below the first row, the header.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if ruled:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
