"""The verb `evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure a model, and say where the results are."""
    from pipelines import config as configs
    from pipelines.experiment import evaluate_run
    from pipelines.runs import checkpoint

    changes = configs.parse(args.overrides)
    folder = _folder(args.model, changes)
    config = configs.load(checkpoint.resolve(folder) / checkpoint.CONFIG).replace(changes)
    results, out = evaluate_run(folder, config, out=args.out, quiet=args.quiet, verbose=args.verbose)
    print(f"{results.table()}\n\n({results.convention})\n{results.images} images; {out}")


def _folder(model: str, changes: dict[str, Any]) -> Path:
    """The folder of a model: a path, or the download of a registered version."""
    from pipelines import registry
    from pipelines.config import Config
    from pipelines.runs import checkpoint, storage
    from pipelines.tracking import uri_of

    if storage.is_uri(model):
        return checkpoint.resolve(model)
    if Path(model).exists() and not model.startswith("models:"):
        return Path(model)
    if not model.startswith("models:") and "@" not in model:
        raise checkpoint.CheckpointError(f"model={model}: no such folder, and no reference like models:/name@alias")
    uri = uri_of(Config().replace({"tracking.uri": str(changes.get("tracking.uri", ""))}))
    return registry.lookup(model, uri=uri).path()
