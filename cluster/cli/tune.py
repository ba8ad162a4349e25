"""The verb `tune`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cluster.cli.arguments import training_configuration
from cluster.cli.outcome import mlflow_page, print_outcome
from pipelines.text import show


def run_tune(args: argparse.Namespace) -> None:
    """Search, print what was found, and retrain the best point if asked."""
    from tuning import space
    from tuning.run import run
    from tuning.sweep import Sweep

    searched = space.load(args.space)
    whole = training_configuration(args)
    base = whole if args.trial_epochs is None else whole.replace({"train.epochs": args.trial_epochs})
    sweep = Sweep(
        base,
        searched,
        args.name or f"{whole.recipe or 'sweep'}-{Path(args.space).stem}-{time.strftime('%Y%m%d-%H%M%S')}",
        trials=args.trials,
        search=args.search,
        scheduler=args.scheduler,
        metrics=tuple(args.metric),
        reports=args.reports,
    )
    outcome = run(sweep, concurrent=args.concurrent, trust=args.trust, quiet=args.quiet, verbose=args.verbose)
    show(f"\n{outcome.text()}\n\npicture {outcome.sweep.folder / 'search.png'}")
    show(f"MLflow  {mlflow_page(outcome.uri, outcome.page)}")
    if outcome.best is None:
        raise ValueError(f"{sweep.name}: no trial finished; the table says why, and the same command resumes the sweep")
    show(f"best    trial {outcome.best.number:03d}: d2sm train --config {outcome.sweep.folder / 'best.yaml'}")
    if args.retrain_best:
        from pipelines import experiment

        best = whole.replace({**outcome.best.point, "train.name": f"{sweep.name}-best"})
        print_outcome(experiment.run(best, quiet=args.quiet, verbose=args.verbose))
