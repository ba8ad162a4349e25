"""The verb `tune`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cluster.cli import arguments


def add(verb: argparse.ArgumentParser) -> None:
    """Its options."""
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--recipe", help="what the points change: a named run")
    which.add_argument("--config", type=Path, help="or a saved configuration")
    verb.add_argument("--space", required=True, help="a ready-made space, or a YAML file of key: [values] (see README)")
    verb.add_argument("--trials", type=int, help="how many points to try; a grid tries all")
    verb.add_argument("--search", default="random", choices=["random", "grid", "optuna"], help="(random)")
    verb.add_argument(
        "--scheduler",
        default="asha",
        choices=["asha", "pbt", "none"],
        help="asha stops bad trials early; pbt lets them take over better ones' state (asha)",
    )
    verb.add_argument(
        "--metric",
        nargs="+",
        default=["psnr.sigma25"],
        metavar="M",
        help="the objective, such as miou.sigma25; several give a Pareto front (psnr.sigma25)",
    )
    verb.add_argument("--reports", type=int, default=3, help="how often a trial is measured (3)")
    verb.add_argument("--name", help="of the sweep; the same name goes on with it (recipe, space and time)")
    verb.add_argument("--concurrent", type=int, help="at most so many trials at once (as many as fit)")
    verb.add_argument("--trial-epochs", type=int, help="epochs of a trial; retraining takes the recipe's own")
    verb.add_argument("--retrain-best", action="store_true", help="afterwards, train the best point with all epochs")
    verb.add_argument("--quiet", action="store_true", help="no table while it runs")


def run_tune(args: argparse.Namespace) -> None:
    """Search, print what was found, and retrain the best if asked."""
    from pipelines.tracking.run import ui_command
    from tuning import space
    from tuning.run import run
    from tuning.sweep import Sweep

    searched = space.load(args.space)
    whole = arguments.training(args)
    base = whole.replace({"train.epochs": args.trial_epochs}) if args.trial_epochs is not None else whole
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
    outcome = run(sweep, concurrent=args.concurrent, quiet=args.quiet, verbose=args.verbose)
    print(f"\n{outcome.text()}\n\npicture {outcome.sweep.folder / 'search.png'}")
    print(f"MLflow  {ui_command(outcome.uri)}  then open http://127.0.0.1:5000/{outcome.page}")
    if outcome.best is None:
        raise ValueError(f"{sweep.name}: no trial finished; the table says why, the same command goes on")
    print(f"best    trial {outcome.best.number:03d}: d2sm train --config {outcome.sweep.folder / 'best.yaml'}")
    if args.retrain_best:
        from cluster.cli.main import report
        from pipelines.experiment import run as job

        best = whole.replace({**outcome.best.point, "train.name": f"{sweep.name}-best"})
        report(job(best, quiet=args.quiet, verbose=args.verbose))
