"""The verb `table`."""

from __future__ import annotations

import argparse

from cluster.cli.arguments import table_given, table_rows
from cluster.cli.outcome import mlflow_page, warn_untracked_runs
from pipelines.text import show


def run_table(args: argparse.Namespace) -> int:
    """Train what is missing and print the table; 1 when a run failed or MLflow lacks something."""
    from pipelines.comparison import render
    from pipelines.table import dry_run, table

    if args.dry_run:
        show(dry_run(table_rows(args), name=args.name, seeds=args.seeds, given=table_given(args)))
        return 0
    outcome = table(
        table_rows(args),
        name=args.name,
        seeds=args.seeds,
        concurrent=args.concurrent,
        quiet=args.quiet,
        verbose=args.verbose,
        given=table_given(args),
    )
    show(f"\n{outcome.text()}\n\ntable  {outcome.folder / render.TEXT}, {outcome.folder / render.JSON}")
    show(f"MLflow {mlflow_page(outcome.uri, outcome.page)}")
    for name, why in outcome.failed.items():
        show(f"failed {name}: {why}; the same command tries it again")
    return max(warn_untracked_runs(outcome.untracked), int(bool(outcome.failed)))
