"""The verb `train`."""

from __future__ import annotations

import argparse
import textwrap

from cluster.cli.arguments import training_configuration
from cluster.cli.outcome import print_outcome
from pipelines.text import show


def run_train(args: argparse.Namespace) -> None:
    """Train, evaluate and register; or list the recipes or the keys."""
    if args.keys:
        show(_keys())
        return
    if args.recipes:
        show(_recipes())
        return
    config = training_configuration(args)
    if args.no_evaluate:
        from pipelines.train import fit

        show(f"checkpoint {fit(config, quiet=args.quiet, verbose=args.verbose).where}")
        return
    from pipelines.experiment import run

    print_outcome(run(config, quiet=args.quiet, verbose=args.verbose))


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
