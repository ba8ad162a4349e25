"""What a submitted job runs: the preflight, then the verb.

python -m cluster.job_entrypoint [--no-preflight] -- VERB ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pipelines.runtime import leaving
from pipelines.text import one_line, show

if TYPE_CHECKING:
    from pipelines.config import Config

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
    verb, asks = _asking_once(words[len(options) + 1 :], wanted=not options)
    return run(verb, first=_preflight if asks else lambda args: 0)


def _asking_once(verb: Sequence[str], *, wanted: bool) -> tuple[list[str], bool]:
    """The words of a verb that asks the nodes at most once, and whether they are asked before it starts.

    Args:
        wanted: whether the nodes are asked at all.
    """
    is_train = list(verb[:1]) == ["train"]
    asks_itself = list(verb[:1]) == ["check"] or (is_train and "--dry-run" in verb)
    asks = wanted and not asks_itself
    told_not_to = is_train and (asks or not wanted)
    return [*verb[:1], *([_NO_PREFLIGHT] if told_not_to else []), *verb[1:]], asks


def _preflight(args: argparse.Namespace) -> int:
    """Check what the verb needs, and print it; 1 when a check failed."""
    from cluster.cli.arguments import needed

    runs = needed(args)
    if not runs:
        return 0
    from cluster.preflight import passes, preflight_all

    checks = preflight_all(runs, evaluates=_evaluates(args, runs[0][0]), verbose=args.verbose)
    return 0 if passes(checks) else 1


def _evaluates(args: argparse.Namespace, config: Config) -> bool:
    """Whether a verb measures images; a sweep may be for metrics of training alone."""
    if metrics := getattr(args, "metric", None):
        from tuning import space
        from tuning.sweep import Sweep

        sweep = Sweep(config, space.load(args.space), args.name or "", metrics=tuple(metrics))
        return sweep.evaluates or args.retrain_best
    return not getattr(args, "no_evaluate", False)


def run_process() -> NoReturn:
    """Run this process's words, and end it. The guard is here, because a caller of `main` may have other work to do."""
    leaving.guard()
    sys.exit(leaving.end(main(sys.argv[1:])))


if __name__ == "__main__":
    run_process()
