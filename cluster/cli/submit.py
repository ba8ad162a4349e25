"""The verb `submit`."""

from __future__ import annotations

import argparse

from cluster.cli.jobs import follow, say
from pipelines.text import show


def run_submit(args: argparse.Namespace) -> int:
    """Send a verb as a job and follow it; its exit code becomes this one's."""
    from cluster.jobs import submit

    for pair in args.env:
        if "=" not in pair:
            raise ValueError(f"--env {pair}: give NAME=VALUE")
    job = submit(
        args.words[1:] if args.words[:1] == ["--"] else args.words,
        address=args.address,
        cpus=args.cpus,
        gpus=args.gpus,
        memory=args.memory,
        env=dict(pair.split("=", 1) for pair in args.env),
        include=args.include,
        install=args.install,
        preflight=not args.no_preflight,
    )
    if args.detach:
        show(job.id)
        return 0
    say(f"job {job.id} at {job.address}")
    return follow(job, raw=args.verbose)
