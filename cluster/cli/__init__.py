"""The command line `d2sm`: `parser.py` says what can be typed, one file a verb says what it does."""

from __future__ import annotations

from cluster.cli.main import main

__all__ = ["main"]
