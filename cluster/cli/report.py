"""The verb `report`."""

from __future__ import annotations

import argparse

from cluster.cli.outcome import mlflow_page
from pipelines.text import show


def run_report(args: argparse.Namespace) -> None:
    """Write the page, and say where it is."""
    from pipelines.comparison.report.write import write_report

    done = write_report(
        args.runs,
        out=args.out,
        pictures=args.pictures,
        with_figures=not args.no_figures,
        trust=args.trust,
        quiet=args.quiet,
    )
    size = done.path.stat().st_size / 1e6
    show(f"report {done.path}  ({size:.1f} MB; opens in any browser, offline)")
    show(f"MLflow {mlflow_page(done.uri, done.page)}")
