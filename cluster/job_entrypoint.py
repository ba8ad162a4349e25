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

_NO_PREFLIGHT = "--no-preflight"
_USAGE = f"python -m cluster.job_entrypoint [{_NO_PREFLIGHT}] -- COMMAND ..."


def main(argv: Sequence[str]) -> int:
    """Exit code of the verb; 1 when a check failed, and the verb was not started; 2 for words that are refused."""
    from cluster.cli.main import main as run

    words = list(argv)
    options = words[: words.index("--")] if "--" in words else []
    unknown = [option for option in options if option != _NO_PREFLIGHT]
    if unknown or "--" not in words:
        why = f"{one_line(unknown[0])}: no such option" if unknown else "no -- before the command"
        show(f"d2sm: {why}; write {_USAGE}", file=sys.stderr)
        return 2
    verb = words[len(options) + 1 :]
    asks = not options and verb[:1] != ["check"]
    if verb[:1] == ["train"]:
        verb.insert(1, _NO_PREFLIGHT)  # the nodes are asked once
    return run(verb, first=_preflight if asks else lambda args: 0)


def _preflight(args: argparse.Namespace) -> int:
    """Check what the verb needs, and print it; 1 when a check failed."""
    from cluster.cli.arguments import configuration, given_keys

    config = configuration(args)
    if config is None:
        return 0
    from cluster.preflight import passes, preflight

    checks = preflight(config, evaluates=_evaluates(args), given=given_keys(args), verbose=args.verbose)
    return 0 if passes(checks) else 1


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
