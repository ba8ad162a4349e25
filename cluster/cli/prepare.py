"""The verb `prepare`."""

from __future__ import annotations

import argparse

from pipelines.text import show


def run_prepare(args: argparse.Namespace) -> None:
    """Prepare, and say how to train on it."""
    from pipelines.prepare import prepare

    done = prepare(
        args.source,
        args.target,
        layout=args.layout,
        splits=args.splits,
        shard_mb=args.shard_mb,
        label_set=args.labels,
        quiet=args.quiet,
        verbose=args.verbose,
    )
    show(
        f"{done.photographs} photographs, {done.bytes / 1e9:.3g} GB in {done.shards} shards ({done.written} written "
        f"now, the others verified); to train on them: data.root={done.root} data.layout={done.layout}"
    )
