"""The verbs that start, ask and stop clusters and jobs: submit, jobs, check, cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import constants
from pipelines.text import columns, one_line

if TYPE_CHECKING:
    from cluster.jobs import Job

Verb = Callable[..., argparse.ArgumentParser]
_ADDRESS = (
    "the head's dashboard, such as http://head:8265 (RAY_API_SERVER_ADDRESS, else the cluster of `d2sm cluster up`, "
    f"else {constants.LOOPBACK}:{constants.DASHBOARD_PORT})"
)


def add(verbs: argparse._SubParsersAction, verb: Verb) -> None:  # type: ignore[type-arg]
    """Add these verbs; `verb` makes one with the options that all verbs have."""
    _submit(verb(verbs, "submit", "send a verb to a Ray cluster as a job, and follow it", run_submit))
    _jobs(verbs.add_parser("jobs", help="look after submitted jobs: list, logs, wait, stop"), verb)
    _check(verb(verbs, "check", "ask every node, before a long job, whether it has what a run needs", run_check))
    _cluster(verbs.add_parser("cluster", help="Ray nodes on this machine, to try things: up, status, down"), verb)


def _submit(verb: argparse.ArgumentParser) -> None:
    verb.usage = "d2sm submit [options] -- VERB [words ...]"
    verb.add_argument("--address", help=_ADDRESS)
    verb.add_argument("--detach", action="store_true", help="do not follow; print the job's id alone")
    verb.add_argument("--no-preflight", action="store_true", help="start the verb without the checks of `d2sm check`")
    verb.add_argument("--install", action="store_true", help="install pins.txt on the nodes, where the image lacks it")
    verb.add_argument("--include", type=Path, action="append", default=[], help="a file or folder to take along")
    verb.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the job")
    verb.add_argument("--cpus", type=float, default=0, help="CPUs for the verb's own process; 0: on the head (0)")
    verb.add_argument("--gpus", type=float, default=0, help="GPUs for the verb's own process (0)")
    verb.add_argument("--memory", type=int, help="bytes for the verb's own process")
    verb.add_argument("words", nargs=argparse.REMAINDER, metavar="VERB", help="the verb and its words")


def run_submit(args: argparse.Namespace) -> int:
    from cluster.jobs import submit

    arguments = args.words[1:] if args.words[:1] == ["--"] else args.words
    job = submit(
        arguments,
        address=args.address,
        cpus=args.cpus,
        gpus=args.gpus,
        memory=args.memory,
        env=_pairs(args.env),
        include=args.include,
        install=args.install,
        preflight=not args.no_preflight,
    )
    if args.detach:
        print(job.id)
        return 0
    _say(f"job {job.id} at {job.address}")
    return _follow(job, raw=args.verbose)


def _pairs(given: list[str]) -> dict[str, str]:
    for pair in given:
        if "=" not in pair:
            raise ValueError(f"--env {pair}: written NAME=VALUE")
    return dict(pair.split("=", 1) for pair in given)


def _follow(job: Job, *, raw: bool) -> int:
    """Show a job's log until it ends. Ctrl-C ends the showing, not the job."""
    since = time.monotonic()
    try:
        status = job.follow(raw=raw)
    except KeyboardInterrupt:
        _say("no longer following; the job goes on. Follow, wait for or stop it:")
        for verb in ("logs --follow", "wait", "stop"):
            _say(f"  d2sm jobs {verb} {job.id} --address {job.address}")
        return 130
    return _ended(job, status, f" after {time.monotonic() - since:.0f} s")


def _ended(job: Job, status: str, when: str = "") -> int:
    code = job.exit_code()
    how = f" with exit code {code}" if status == "FAILED" else ""
    why = ""
    if status == "FAILED" and job.info().error_type != "JOB_ENTRYPOINT_COMMAND_ERROR":  # it never came to its own words
        why = f": {one_line(job.info().message or '', None)[-400:]}"
    _say(f"job {job.id} {status.lower()}{how}{when}{why}")
    return code


def _say(text: str) -> None:
    print(f"d2sm: {text}", file=sys.stderr, flush=True)


def _jobs(jobs: argparse.ArgumentParser, verb: Verb) -> None:
    inner = jobs.add_subparsers(title="verbs", required=True, metavar="VERB")
    listing = verb(inner, "list", "the jobs of a cluster, newest first", run_list)
    logs = verb(inner, "logs", "what a job has printed", run_logs)
    wait = verb(inner, "wait", "wait until a job has ended; its exit code becomes this one's", run_wait)
    stop = verb(inner, "stop", "end a job as Ctrl-C would: its last checkpoint stays", run_stop)
    logs.add_argument("-f", "--follow", action="store_true", help="until it has ended")
    wait.add_argument("--timeout", type=float, help="seconds; then exit code 3, and the job goes on")
    for one in (logs, wait, stop):
        one.add_argument("id", help="as `d2sm jobs list` shows it")
    for one in (listing, logs, wait, stop):
        one.add_argument("--address", help=_ADDRESS)


def _job(args: argparse.Namespace) -> Job:
    from cluster import dashboard
    from cluster.jobs import Job

    address = dashboard.address_of(args.address)
    dashboard.check(address)
    return Job(args.id, address)


def run_list(args: argparse.Namespace) -> None:
    from cluster import dashboard, jobs

    rows = [["job", "status", "verb", "started", "seconds"]]
    for job in jobs.listing(dashboard.address_of(args.address)):
        started = (job.start_time or 0) / 1000
        took = (job.end_time / 1000 if job.end_time else time.time()) - started
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))
        verb = (job.metadata or {}).get("d2sm.verb", "")
        rows.append([str(job.submission_id), job.status.value, verb, when, f"{took:.0f}"])
    print(columns(rows) if len(rows) > 1 else "no jobs")


def run_logs(args: argparse.Namespace) -> int:
    from cluster.jobs import Tidy

    job = _job(args)
    if args.follow:
        return _follow(job, raw=args.verbose)
    tidy = Tidy(sys.stdout, raw=args.verbose)
    tidy.write(job.logs())
    tidy.close()
    return 0


def run_wait(args: argparse.Namespace) -> int:
    job = _job(args)
    status = job.wait(args.timeout)
    if status in ("PENDING", "RUNNING"):
        _say(f"job {job.id} is still {status.lower()} after {args.timeout:g} s; it goes on")
        return 3
    return _ended(job, status)


def run_stop(args: argparse.Namespace) -> int:
    status = _job(args).stop()
    print(f"job {args.id} {status.lower()}")
    return 0 if status in ("STOPPED", "SUCCEEDED", "FAILED") else 1


def _check(verb: argparse.ArgumentParser) -> None:
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--recipe", help="a named run, as for `d2sm train`")
    which.add_argument("--config", type=Path, help="a saved configuration")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, as for `d2sm train`")


def run_check(args: argparse.Namespace) -> int:
    from cluster.cli import arguments
    from cluster.preflight import passes, preflight

    config = arguments.configured(args)
    assert config is not None  # the parser wants one of the two
    return 0 if passes(preflight(config, verbose=args.verbose)) else 1


def _cluster(cluster: argparse.ArgumentParser, verb: Verb) -> None:
    inner = cluster.add_subparsers(title="verbs", required=True, metavar="VERB")
    up = verb(inner, "up", "start Ray nodes on this machine, the dashboard on loopback", run_up)
    up.add_argument("--nodes", type=int, default=3, help="in all, the head among them (3)")
    up.add_argument("--cpus-per-node", type=float, default=2, help="a number only: they share this machine's cores (2)")
    up.add_argument(
        "--port", type=int, default=constants.GCS_PORT, help=f"of the head; 0: a free one ({constants.GCS_PORT})"
    )
    up.add_argument(
        "--dashboard-port",
        type=int,
        default=constants.DASHBOARD_PORT,
        help=f"0: a free one ({constants.DASHBOARD_PORT})",
    )
    verb(inner, "status", "which nodes are alive", run_status)
    more = verb(inner, "add", "start one more worker node", run_add)
    more.add_argument("--cpus", type=float, default=2, help="that the node says it has (2)")
    killed = verb(inner, "kill", "end a worker node as a power cut would, to see a run survive it", run_kill)
    killed.add_argument("number", type=int, nargs="?", default=1, help="which of those that live, from 1 (1)")
    verb(inner, "down", "end what `up` started, jobs included", run_down)


def run_up(args: argparse.Namespace) -> None:
    from cluster import nodes

    since = time.monotonic()
    state = nodes.up(args.nodes, cpus=args.cpus_per_node, port=args.port, dashboard_port=args.dashboard_port)
    print(f"{state.nodes} nodes at {state.address} after {time.monotonic() - since:.0f} s, dashboard {state.dashboard}")
    print("send a job    d2sm submit -- VERB ...")
    print(f"join it       export RAY_ADDRESS={state.address} RAY_AUTH_MODE=token")
    print("end it        d2sm cluster down")


def run_status(args: argparse.Namespace) -> int:
    from cluster import nodes

    state = nodes.read()
    if state is None:
        print("no cluster; `d2sm cluster up` starts one")
        return 1
    alive = nodes.alive(state)
    print(f"{len(alive)} of {state.nodes} nodes alive at {state.address}, dashboard {state.dashboard}")
    rows = [["node", "role", "CPU"]]
    for node in alive:
        total = node.get("resources_total")
        cpus = total.get("CPU", 0) if isinstance(total, dict) else 0
        rows.append([str(node.get("node_id"))[:8], "head" if node.get("is_head_node") else "worker", f"{cpus:g}"])
    print(columns(rows))
    return 0 if len(alive) >= state.nodes else 1


def run_add(args: argparse.Namespace) -> None:
    from cluster import nodes

    state = nodes.add(cpus=args.cpus)
    print(f"{len(nodes.alive(state))} nodes alive at {state.address}")


def run_kill(args: argparse.Namespace) -> None:
    from cluster import nodes

    print(f"node {args.number} killed, {nodes.kill(args.number)} processes")


def run_down(args: argparse.Namespace) -> None:
    from cluster import nodes

    ended = nodes.down()
    print(f"{ended} processes ended" if ended else "nothing was up")
