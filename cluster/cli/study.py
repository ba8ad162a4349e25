"""The verb `study`."""

from __future__ import annotations

import argparse

from cluster.cli.arguments import is_results, study_runs
from cluster.cli.outcome import mlflow_page, warn_untracked_runs
from pipelines.text import show


def run_study(args: argparse.Namespace) -> int:
    """Train what is missing and print the tables; of a study's results print the tables alone.

    Gives 1 when a run failed, or MLflow lacks something.
    """
    from pipelines import study
    from pipelines.comparison import study_results

    if is_results(args.plan):
        results = study_results.load(args.plan)
        show(study_results.text(results.against(args.against) if args.against else results))
        return 0
    if args.against:
        raise ValueError(
            f"--against {args.against}: {args.plan} is a plan; its objectives are compared with the first one; give "
            f"--against with the {study_results.RAW} of a study"
        )
    planned = study_runs(args)
    if args.dry_run:
        planned = study.settled(planned)
        show(study.budget(planned, study.check(planned)))
        return 0
    outcome = study.run(planned, concurrent=args.concurrent, quiet=args.quiet, verbose=args.verbose)
    show(f"\n{study_results.text(outcome.results)}\n")
    for path in outcome.files:
        show(path)
    show(f"MLflow {mlflow_page(outcome.uri, outcome.page)}")
    for name, why in outcome.failed.items():
        show(f"failed {name}: {why}; the same command tries it again")
    return max(warn_untracked_runs(outcome.untracked), int(bool(outcome.failed)))
