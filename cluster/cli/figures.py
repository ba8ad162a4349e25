"""The verb `figures`."""

from __future__ import annotations

import argparse

from cluster.cli.outcome import mlflow_page
from pipelines.text import show


def run_figures(args: argparse.Namespace) -> None:
    """Draw, and say where everything is."""
    from pipelines.comparison.figures.draw import draw_figures

    drawn = draw_figures(args.runs, args.out, only=args.only, trust=args.trust, quiet=args.quiet)
    for name, value in drawn.numbers.items():
        show(f"{name}  {value:.4g}")
    for path in drawn.files:
        show(path)
    show(f"MLflow  {mlflow_page(drawn.uri, drawn.page)}")
