"""The verb `check`."""

from __future__ import annotations

import argparse

from cluster.cli.arguments import configuration, given_keys


def run_check(args: argparse.Namespace) -> int:
    """Check this machine and, on a cluster, every node; 1 when something is missing."""
    from cluster.preflight import passes, preflight

    config = configuration(args)
    assert config is not None  # the parser requires --recipe or --config
    return 0 if passes(preflight(config, given=given_keys(args), verbose=args.verbose)) else 1
