"""The verb `train`."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence

from cluster.cli.arguments import given_keys, training_configuration
from cluster.cli.outcome import print_outcome, warn_untracked
from pipelines.text import show


def run_train(args: argparse.Namespace) -> int:
    """Check, then train, evaluate and register; or only check, or list the recipes, the keys or a network's layers.

    Gives 1 if MLflow does not have all of it yet.
    """
    if args.keys:
        show(_keys())
        return 0
    if args.recipes:
        show(_recipes())
        return 0
    if args.layers:
        show(_layers(args.layers, args.overrides))
        return 0
    config, given = training_configuration(args), given_keys(args)
    if args.no_evaluate:
        from pipelines.check import refuse, unused_untested

        refuse(list(unused_untested(config, given)))
    if args.dry_run:
        from cluster.preflight import passes, preflight

        checks = preflight(
            config, evaluates=not args.no_evaluate, given=given, nodes=not args.no_preflight, verbose=args.verbose
        )
        return 0 if passes(checks) else 1
    from pipelines.runs.names import check_name
    from pipelines.runtime import resources, session

    if config.train.name:  # the one check of a run that needs nothing but the key, before Ray is started
        check_name(config.train.name, "train.name")
    session.begin(cpus=resources.run_cpus(config), verbose=args.verbose)
    # Before the verb itself is imported, which takes seconds.
    from pipelines.check import check

    ready = check(config, evaluates=not args.no_evaluate, given=given)
    if os.environ.get("RAY_ADDRESS") and not args.no_preflight:
        from cluster.preflight import ask_nodes, refuse_failed

        refuse_failed(ask_nodes(ready.config, evaluates=not args.no_evaluate, verbose=args.verbose))
    if args.no_evaluate:
        from pipelines.train import fit

        trained = fit(ready.config, quiet=args.quiet, verbose=args.verbose, ready=ready)
        show(f"checkpoint {trained.where}")
        return warn_untracked(trained.untracked)
    from pipelines.experiment import run

    return print_outcome(run(ready.config, quiet=args.quiet, verbose=args.verbose, ready=ready))


def _keys() -> str:
    """Every key with its default, what it means and, of a closed set, its values."""
    from pipelines import config as configs

    lines = []
    for key, value in configs.Config().flat().items():
        lines += [f"{key}={configs.typed(value)}", _indented(configs.keys()[key].description or "")]
        if choices := configs.choices(key):
            lines.append(_indented(f"one of {', '.join(choices)}"))
    return "\n".join(lines)


def _indented(text: str) -> str:
    """A paragraph below a heading. No word is broken: names and values can be copied."""
    return textwrap.indent(textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False), "    ")


def _layers(network: str, overrides: Sequence[str]) -> str:
    """The layers of a network that can be Phi, with stride and channels."""
    from pipelines import config as configs
    from pipelines.config import Config
    from pipelines.networks.features import layers_of
    from pipelines.tracking.segmenter import for_phi

    weights = Config().replace(configs.parse(overrides)).loss.phi_weights[0]
    layers = layers_of(network, for_phi(), weights=weights)
    width = max((len(layer.name) for layer in layers), default=0)
    return "\n".join(
        f"{layer.name:<{width}}  stride {layer.stride:>3}  {layer.channels:>5} channels" for layer in layers
    )


def _recipes() -> str:
    """Every recipe with its description and the keys it sets."""
    from pipelines.config import Config, typed
    from pipelines.recipes import descriptions, recipes

    default, about, lines = Config().flat(), descriptions(), []
    for name, config in recipes().items():
        changed = [f"{k}={typed(v)}" for k, v in config.flat().items() if v != default[k] and k != "recipe"]
        lines += [f"{name}: {about[name]}", _indented(" ".join(changed))]
    return "\n".join(lines)
