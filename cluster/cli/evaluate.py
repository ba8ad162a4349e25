"""The verb `evaluate`."""

from __future__ import annotations

import argparse

from pipelines.text import show


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure a model, and say where the results are."""
    from pipelines import config as configs
    from pipelines import registry
    from pipelines.experiment import evaluate_run
    from pipelines.runs import checkpoint
    from pipelines.runs.trust import check_config

    changes = configs.parse(args.overrides)
    folder = registry.model_folder(args.model, uri=changes.get("tracking.uri"))
    config = configs.load(folder / checkpoint.CONFIG).replace(changes)
    check_config(config, folder, given=changes, trust=args.trust)
    results, out = evaluate_run(folder, config, out=args.out, quiet=args.quiet, verbose=args.verbose)
    show(f"{results.table()}\n\n({results.convention})\n{results.images} images; {out}")
