"""From the workers to the driver: log entries, one tidy line, and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm


class Line:
    """One progress line on a terminal; a plain line every half minute elsewhere."""

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
        """Move to a step and show some numbers."""
        if numbers:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
        self.bar.update(max(0, step - self.bar.n))

    def say(self, text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=sys.stderr)
