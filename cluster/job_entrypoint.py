"""What a submitted job runs: the preflight, then the verb.

python -m cluster.job_entrypoint [--no-preflight] -- VERB ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipelines.runtime import leaving
from pipelines.text import one_line, show


def main(argv: Sequence[str]) -> int:
    """Exit code of the verb; 1 when a check failed, and the verb was not started."""
    from cluster.cli.arguments import configuration, given_keys
    from cluster.cli.main import main as run
    from cluster.cli.parser import parser

    cut = list(argv).index("--")
    options, verb = argv[:cut], list(argv[cut + 1 :])
    try:
        args = parser().parse_args(verb)
        config = configuration(args)
        if config is not None and verb[0] != "check" and "--no-preflight" not in options:
            from cluster.preflight import passes, preflight

            if not passes(preflight(config, evaluates=_evaluates(args), given=given_keys(args))):
                return 1
    except (ValueError, OSError) as error:
        for reason in getattr(error, "reasons", [error]):
            show(f"d2sm: {one_line(reason, None)}", file=sys.stderr)
        return 2
    return run([verb[0], "--no-preflight", *verb[1:]] if verb[:1] == ["train"] else verb)  # the nodes are asked once


def _evaluates(args: argparse.Namespace) -> bool:
    """Whether a verb measures images; a sweep may be for metrics of training alone."""
    if metrics := getattr(args, "metric", None):
        return any(metric.startswith(("psnr", "ssim", "miou")) for metric in metrics)
    return not getattr(args, "no_evaluate", False)


def run_process() -> NoReturn:
    """Run this process's words, and end it. The guard is here, because a caller of `main` may have other work to do."""
    leaving.guard()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run_process()
