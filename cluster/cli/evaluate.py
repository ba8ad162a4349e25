"""The verb `evaluate`."""

from __future__ import annotations

import argparse

from cluster.cli.outcome import warn_untracked
from pipelines.text import counted, show


def run_evaluate(args: argparse.Namespace) -> int:
    """Measure a model, and say where the results are; gives 1 if MLflow does not have them yet."""
    from pipelines import config as configs
    from pipelines import registry
    from pipelines.check import refuse, unused, unused_in_evaluation
    from pipelines.data import splits
    from pipelines.experiment import configuration_of, evaluate_run
    from pipelines.runs.trust import check_config

    changes = configs.parse(args.overrides)
    folder = registry.model_folder(args.model, uri=changes.get("tracking.uri"))
    config, settled = splits.settled(configuration_of(folder).replace(changes), given=changes)
    refuse(list(unused_in_evaluation(config, changes)) or list(unused(config, changes)))
    for line in settled:
        show(line)
    check_config(config, folder, given=changes, trust=args.trust)
    done = evaluate_run(folder, config, out=args.out, quiet=args.quiet, verbose=args.verbose)
    show(f"{done.results.table()}\n\n({done.results.convention})")
    for note in done.results.notes():
        show(note)
    count = done.results.images
    show(f"{counted(count, 'image')}; {done.path}")
    for note in done.notes:
        show(note)
    return warn_untracked(done.untracked)
