"""The verb `tune`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cluster.cli.arguments import given_keys, training_configuration
from cluster.cli.outcome import mlflow_page, print_outcome
from pipelines.text import show


def run_tune(args: argparse.Namespace) -> int:
    """Search, print what was found, and retrain the best point if asked; 1 if MLflow lacks some of that training."""
    from pipelines.config import ConfigError
    from pipelines.parallel import refuse_names
    from tuning import space
    from tuning.run import run
    from tuning.sweep import Sweep

    searched = space.load(args.space)
    whole, given = training_configuration(args), given_keys(args)
    refuse_names({key: value for key, value in whole.flat().items() if key in given}, "sweep")
    if "tracking.register_as" in given and not args.retrain_best:
        raise ConfigError(
            f"tracking.register_as={whole.tracking.register_as}: a sweep registers no model but that of its best "
            "point, trained with --retrain-best; add that, or leave the key out"
        )
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
    outcome = run(
        sweep, concurrent=args.concurrent, trust=args.trust, quiet=args.quiet, verbose=args.verbose, given=given
    )
    show(f"\n{outcome.text()}\n\npicture {outcome.sweep.folder / 'search.png'}")
    show(f"MLflow  {mlflow_page(outcome.uri, outcome.page)}")
    if outcome.best is None:
        raise ValueError(
            f"{sweep.name}: no trial finished; the table says why, and a sweep tries none of them again; choose "
            "another --name"
        )
    show(f"best    trial {outcome.best.number:03d}: d2sm train --config {outcome.sweep.folder / 'best.yaml'}")
    if not args.retrain_best:
        return 0
    from pipelines import experiment

    best = whole.replace({**outcome.best.point, "train.name": f"{sweep.name}-best"})
    return print_outcome(
        experiment.run(best, quiet=args.quiet, verbose=args.verbose, given=given | outcome.best.point.keys())
    )
