"""`d2sm`: parse the command line, run the verb, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from cluster.cli import terminal
from cluster.cli.parser import parser
from pipelines import secrets
from pipelines.runtime import auth, leaving, native
from pipelines.text import how_to_install, one_line, redact, show

_ON_RAY = tuple(f"cluster.cli.{verb}" for verb in ("train", "tune", "table", "study", "prepare", "check", "demo"))

_INSTALL = f"every command needs the packages of the pipeline, the loss alone does not: {how_to_install('pipelines')}"


def main(argv: Sequence[str] | None = None, *, first: Callable[[argparse.Namespace], int] = lambda args: 0) -> int:
    """Run a verb.

    Args:
        argv: its words; None: this process's.
        first: called before the verb with its options; an exit code other than 0 is returned, and the verb not run.

    Returns:
        The exit code: the verb's own, else 0; 2 for refused input, after a line for each reason on stderr; 130 for
        Ctrl-C; 141 if whoever read the output has gone.
    """
    terminal.accept_any_character()
    if argv is None:  # the process is this verb's
        leaving.guard()
    try:
        try:
            code = _run(sys.argv[1:] if argv is None else argv, first, loading=argv is None)
        finally:
            sys.stdout.flush()  # here, because Python's own flush at the end would print an error
        return leaving.end(code) if argv is None else code
    except BrokenPipeError:
        if not (closed := terminal.closed_streams()):
            raise
        terminal.discard(closed)
        return terminal.PIPE_CLOSED


def _stopped(module: str) -> str:
    """What a verb says that a signal ends; only those that train or prepare keep what they have done so far."""
    if module == "cluster.cli.jobs":
        return "stopped; the job is left as it is"
    return leaving.STOPPED if module in _ON_RAY and module != "cluster.cli.check" else "stopped"


def _run(words: Sequence[str], first: Callable[[argparse.Namespace], int], *, loading: bool) -> int:
    if line := secrets.in_words(words):  # before argparse, whose own messages repeat the words
        show(f"d2sm: {line}", file=sys.stderr)
        return 2
    args = parser().parse_args(words)
    module, _, function = args.run.partition(":")
    leaving.say_at_end(_stopped(module))
    if loading and not args.verbose:
        native.set_aside()
    try:
        # Words given by a caller in Python: loading libraries is that program's own affair.
        with terminal.stages(shown=not getattr(args, "quiet", False), loading=loading):
            auth.offer_token()
            if module in _ON_RAY:  # before the verb loads anything, which takes seconds
                auth.check_cluster()
            if code := first(args):
                return code
            run = getattr(import_module(module), function)
            return int(run(args) or 0)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and not leaving.signalled():  # while Ray starts, its handler raises this
            raise
        show(f"d2sm: {leaving.line()}", file=sys.stderr)
        leaving.said()
        return leaving.INTERRUPTED
    except (ValueError, OSError) as error:
        if reason := leaving.why_lost():
            leaving.leave(1, reason)  # what is left to do at the end would wait for Ray
        if isinstance(error, BrokenPipeError) and terminal.closed_streams():
            raise
        if args.verbose:
            show(redact(traceback.format_exc()).rstrip(), file=sys.stderr)
        else:
            for reason in getattr(error, "reasons", [error]):
                show(f"d2sm: {one_line(reason, limit=None)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if args.verbose or package in ("", "cluster", "tuning", "pipelines", "d2sm"):
            raise
        show(f"d2sm: {package} is not installed; {_INSTALL}", file=sys.stderr)
        return 2
    except Exception as error:
        if reason := leaving.why_lost():
            leaving.leave(1, reason)
        # Ray's own errors, such as of a machine out of memory: their first line says what happened. One of a task is
        # the error of our code in it.
        if args.verbose or type(error).__module__ != "ray.exceptions" or type(error).__name__.startswith("RayTask"):
            raise
        why = one_line(str(error).strip().partition("\n")[0] or error)
        show(f"d2sm: Ray ended the work: {why} (-v shows all of it); {leaving.KEPT}", file=sys.stderr)
        return 1
