"""The verb `scenes`."""

from __future__ import annotations

import argparse

from pipelines.text import show


def run_scenes(args: argparse.Namespace) -> None:
    """Write drawn streets, and say how to train on them."""
    from pipelines.scenes import write_scenes

    root = write_scenes(args.root, train=args.train, val=args.val, height=args.height, width=args.width, seed=args.seed)
    show(f"{args.train} training and {args.val} evaluation scenes in {root}; to train on them: data.root={root}")
