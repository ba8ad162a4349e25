"""The verb `train`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.cli.arguments import training_configuration
from cluster.cli.outcome import print_outcome

if TYPE_CHECKING:
    from pipelines.config import Config


def run_train(args: argparse.Namespace) -> None:
    """Train, evaluate and register; or list the recipes or the keys."""
    if args.keys:
        print(_keys())
        return
    if args.recipes:
        from pipelines.recipes import recipes

        print(_recipes(recipes()))
        return
    config = training_configuration(args)
    if args.no_evaluate:
        from pipelines.train import fit

        print(f"checkpoint {fit(config, quiet=args.quiet, verbose=args.verbose).where}")
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


def _recipes(known: Mapping[str, Config]) -> str:
    """Every recipe with the keys it sets."""
    from pipelines.config import Config

    default, lines = Config().flat(), []
    for name, config in known.items():
        changed = [f"{k}={v}" for k, v in config.flat().items() if v != default[k] and k != "recipe"]
        lines += [name, textwrap.indent(textwrap.fill(" ".join(changed), 100), "    ")]
    return "\n".join(lines)
