"""The verb `demo`."""

from __future__ import annotations

import argparse


def run_demo(args: argparse.Namespace) -> None:
    """The whole pipeline on drawn streets."""
    from pipelines.demo import demo

    demo(args.dir, verbose=args.verbose)
