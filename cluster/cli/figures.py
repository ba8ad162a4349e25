"""The verb `figures`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verb: argparse.ArgumentParser) -> None:
    """Its options."""
    verb.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs; seeds of one setting are a row")
    verb.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PNG and SVG files (figures)")
    verb.add_argument("--only", choices=["tsne", "comparison", "convergence"], help="one of them")


def run_figures(args: argparse.Namespace) -> None:
    """Draw, and say where everything is."""
    from pipelines.comparison.figures.job import draw
    from pipelines.tracking.run import ui_command

    drawn = draw(args.runs, args.out, only=args.only)
    for name, value in drawn.numbers.items():
        print(f"{name}  {value:.4g}")
    for path in drawn.files:
        print(path)
    print(f"MLflow  {ui_command(drawn.uri)}  then open http://127.0.0.1:5000/{drawn.page}")
