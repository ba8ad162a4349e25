"""The verb `demo`."""

from __future__ import annotations

import argparse

from cluster.cli.outcome import warn_untracked


def run_demo(args: argparse.Namespace) -> int:
    """The whole pipeline on drawn streets; gives 1 if MLflow does not have all of it yet."""
    from pipelines.demo import demo

    return warn_untracked(demo(args.dir, verbose=args.verbose).untracked)
