"""The verb `train`."""

from __future__ import annotations

import argparse
import os
import textwrap

from cluster.cli.arguments import given_keys, training_configuration
from cluster.cli.outcome import print_outcome
from pipelines.text import show


def run_train(args: argparse.Namespace) -> int:
    """Check, then train, evaluate and register; or only check, or list the recipes or the keys.

    Gives 1 if MLflow does not have all of it yet.
    """
    if args.keys:
        show(_keys())
        return 0
    if args.recipes:
        show(_recipes())
        return 0
    config, given = training_configuration(args), given_keys(args)
    if args.dry_run:
        from cluster.preflight import passes, preflight

        checks = preflight(config, evaluates=not args.no_evaluate, given=given, verbose=args.verbose)
        return 0 if passes(checks) else 1
    # Before the verb itself is imported, which takes seconds.
    from pipelines.check import check

    ready = check(config, evaluates=not args.no_evaluate, given=given)
    if os.environ.get("RAY_ADDRESS") and not args.no_preflight:
        from cluster.preflight import ask_nodes, refuse_failed

        refuse_failed(ask_nodes(ready.config, evaluates=not args.no_evaluate, verbose=args.verbose))
    if args.no_evaluate:
        from pipelines.train import fit

        show(f"checkpoint {fit(ready.config, quiet=args.quiet, verbose=args.verbose, ready=ready).where}")
        return 0
    from pipelines.experiment import run

    return print_outcome(run(ready.config, quiet=args.quiet, verbose=args.verbose, ready=ready))


def _keys() -> str:
    """Every key with its default and what it means."""
    from pipelines import config as configs

    lines = []
    for key, value in configs.Config().flat().items():
        about = configs.keys()[key].description or ""
        lines += [f"{key}={'' if value is None else value}", textwrap.indent(textwrap.fill(about, 100), "    ")]
    return "\n".join(lines)


def _recipes() -> str:
    """Every recipe with its description and the keys it sets."""
    from pipelines.config import Config
    from pipelines.recipes import descriptions, recipes

    default, about, lines = Config().flat(), descriptions(), []
    for name, config in recipes().items():
        changed = [f"{k}={v}" for k, v in config.flat().items() if v != default[k] and k != "recipe"]
        lines += [f"{name}: {about[name]}", textwrap.indent(textwrap.fill(" ".join(changed), 100), "    ")]
    return "\n".join(lines)
