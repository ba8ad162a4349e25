"""The verbs `jobs list`, `jobs logs`, `jobs wait` and `jobs stop`; following a job's log is `submit`'s too."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from pipelines.text import columns, one_line, show

if TYPE_CHECKING:
    from cluster.jobs import Job

STILL_RUNNING = 3  # exit code of `jobs wait --timeout`


def run_list(args: argparse.Namespace) -> None:
    """The jobs of a cluster, newest first."""
    from cluster import dashboard, jobs

    rows = [["job", "status", "command", "started", "seconds"]]
    for job in jobs.listing(dashboard.address_of(args.address)):
        started = (job.start_time or 0) / 1000
        took = (job.end_time / 1000 if job.end_time else time.time()) - started
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))
        verb = (job.metadata or {}).get("d2sm.verb", "")
        rows.append([str(job.submission_id), job.status.value, verb, when, f"{took:.0f}"])
    show(columns(rows) if len(rows) > 1 else "no jobs")


def run_logs(args: argparse.Namespace) -> int:
    """What a job has printed; with --follow until it ends."""
    from cluster.jobs import LogPrinter

    job = _job(args)
    if args.follow:
        return follow(job, raw=args.verbose)
    printer = LogPrinter(sys.stdout, raw=args.verbose)
    printer.write(job.logs())
    printer.close()
    return 0


def run_wait(args: argparse.Namespace) -> int:
    """Wait for a job; its exit code becomes this one's."""
    job = _job(args)
    status = job.wait(args.timeout)
    if status in ("PENDING", "RUNNING"):
        say(f"job {job.id} is still {status.lower()} after {args.timeout:g} s; it goes on")
        return STILL_RUNNING
    return _ended(job, status)


def run_stop(args: argparse.Namespace) -> int:
    """Stop a job; 1 when it does not end."""
    status = _job(args).stop()
    show(f"job {args.id} {status.lower()}")
    return 0 if status in ("STOPPED", "SUCCEEDED", "FAILED") else 1


def follow(job: Job, *, raw: bool) -> int:
    """Print a job's log until the job ends; its exit code. Ctrl-C ends the printing, not the job."""
    since = time.monotonic()
    try:
        status = job.follow(raw=raw)
    except KeyboardInterrupt:
        say("no longer following the log; the job goes on. To follow it, wait for it or stop it:")
        for verb in ("logs --follow", "wait", "stop"):
            say(f"  d2sm jobs {verb} {job.id} --address {job.address}")
        return 130
    return _ended(job, status, f" after {time.monotonic() - since:.0f} s")


def say(text: str) -> None:
    """A line on stderr: stdout is the job's."""
    show(f"d2sm: {text}", file=sys.stderr)


def _job(args: argparse.Namespace) -> Job:
    from cluster import dashboard
    from cluster.jobs import Job

    address = dashboard.address_of(args.address)
    dashboard.check(address)
    return Job(args.id, address)


def _ended(job: Job, status: str, when: str = "") -> int:
    code = job.exit_code()
    how = f" with exit code {code}" if status == "FAILED" else ""
    why = ""
    if status == "FAILED" and job.info().error_type != "JOB_ENTRYPOINT_COMMAND_ERROR":  # the verb was not started
        why = f": {one_line(job.info().message or '', limit=None)[-400:]}"
    say(f"job {job.id} {status.lower()}{how}{when}{why}")
    return code
