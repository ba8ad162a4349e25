"""The verb `prepare`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verb: argparse.ArgumentParser) -> None:
    """Its options."""
    verb.add_argument("source", type=Path, help="the photographs, as data.root")
    verb.add_argument("target", type=Path, help="folder to write; the same again goes on, or checks and mends it")
    verb.add_argument(
        "--layout", default="cityscapes", choices=["cityscapes", "folder", "pairs"], help="as data.layout (cityscapes)"
    )
    verb.add_argument("--splits", nargs="+", default=["train", "val"], metavar="S", help="(train val)")
    verb.add_argument("--shard-mb", type=float, default=256, metavar="MB", help="size of a file, in MB (256)")
    verb.add_argument("--quiet", action="store_true", help="no progress line")


def run_prepare(args: argparse.Namespace) -> None:
    """Prepare, and say how to train on it."""
    from pipelines.prepare import prepare

    done = prepare(
        args.source,
        args.target,
        layout=args.layout,
        splits=args.splits,
        shard_mb=args.shard_mb,
        quiet=args.quiet,
        verbose=args.verbose,
    )
    print(
        f"{done.photographs} photographs, {done.bytes / 1e9:.3g} GB in {done.shards} shards ({done.written} written "
        f"now, the others checked); train on them with data.root={done.root} data.layout={args.layout}"
    )
