"""The progress line of a verb."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm


class Line:
    """A progress bar on a terminal; elsewhere, such as in a job's log, a line of text every half minute.

    Args:
        what: shown in front: what is in progress.
        total: steps in all.
        start: steps done before.
        quiet: show no progress; `say` still prints.
    """

    def __init__(self, what: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.what, terminal = what, sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=what,
            disable=quiet,
            mininterval=0.2 if terminal else 30,
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}"
            if terminal
            else "{desc} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def to(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        """Show a step as done, and some numbers behind it."""
        if numbers:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
        self.bar.update(max(0, step - self.bar.n))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=sys.stderr)
