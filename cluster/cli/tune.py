"""The verb `tune`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.arguments import given_keys, searched_space, training_configuration
from cluster.cli.outcome import mlflow_page, print_outcome, warn_untracked_runs
from pipelines.text import show

if TYPE_CHECKING:
    from pipelines.config import Config
    from tuning.sweep import Sweep


def run_tune(args: argparse.Namespace) -> int:
    """Search, print what was found, and retrain the best point if asked; gives 1 if MLflow lacks something."""
    from pipelines.config import ConfigError
    from pipelines.parallel import refuse_names

    searched = searched_space(args)  # before Ray Tune is imported, which takes seconds
    from tuning.run import run
    from tuning.sweep import Sweep

    whole, given = training_configuration(args), given_keys(args)
    refuse_names({key: value for key, value in whole.flat().items() if key in given}, "sweep")
    if "tracking.register_as" in given and not args.retrain_best:
        raise ConfigError(
            f"tracking.register_as={whole.tracking.register_as}: a sweep registers no model but that of its best "
            "point, trained with --retrain-best; add that, or leave the key out"
        )
    if args.trial_epochs is not None and "train.epochs" in searched:
        raise ConfigError(
            f"--trial-epochs {args.trial_epochs}: --space {args.space} searches train.epochs; leave one of them out"
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
    if args.retrain_best:
        _check_best(sweep, whole, given)
    outcome = run(
        sweep, concurrent=args.concurrent, trust=args.trust, quiet=args.quiet, verbose=args.verbose, given=given
    )
    show(f"\n{outcome.text()}\n\npicture {outcome.sweep.folder / 'search.png'}")
    show(f"MLflow  {mlflow_page(outcome.uri, outcome.page)}")
    code = warn_untracked_runs(outcome.untracked)
    if outcome.best is None:
        raise ValueError(
            f"{sweep.name}: no trial finished; the table says why, and a sweep tries none of them again; choose "
            "another --name"
        )
    # best.yaml has the epochs of the trials.
    longer = f" train.epochs={whole.train.epochs}" if base.train.epochs != whole.train.epochs else ""
    show(f"best    trial {outcome.best.number:03d}: d2sm train --config {outcome.sweep.folder / 'best.yaml'}{longer}")
    if not args.retrain_best:
        return code
    from pipelines import experiment

    best = whole.replace({**outcome.best.point, "train.name": _name_of_best(sweep)})
    retrained = experiment.run(best, quiet=args.quiet, verbose=args.verbose, given=given | outcome.best.point.keys())
    return max(code, print_outcome(retrained))


def _name_of_best(sweep: Sweep) -> str:
    return f"{sweep.name}-best"


def _check_best(sweep: Sweep, whole: Config, given: Collection[str]) -> None:
    """Check before the search what the training after it needs.

    Its point is not known yet, so the base's is taken or, if an earlier start of the sweep got so far, that training's.

    Raises:
        ConfigError, DataError, SegmenterError, ...: as `check.check`.
    """
    from pipelines import config as configs
    from pipelines.check import check
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.names import check_name
    from tuning.space import Range
    from tuning.sweep import resolved

    name, searched = _name_of_best(sweep), resolved(sweep).space
    check_name(name, f"--name {sweep.name} with --retrain-best: train.name")
    begun = RunFolder.at(sweep.folder.parent / name).config_file
    saved = configs.load(begun).flat() if begun.exists() else {}
    for key in configs.open_keys():
        saved |= {f"{key}.{entry}": value for entry, value in saved.get(key, {}).items()}
    point = {
        key: saved[key]
        for key, domain in searched.items()
        if key in saved and (isinstance(domain, Range) or saved[key] in domain)
    }
    check(whole.replace({**point, "train.name": name}), given={*given, *searched}, say=lambda line: None)
