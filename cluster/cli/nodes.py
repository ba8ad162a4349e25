"""The verbs `cluster up`, `cluster status`, `cluster add`, `cluster kill` and `cluster down`."""

from __future__ import annotations

import argparse
import time

from pipelines.text import columns, counted, show


def run_up(args: argparse.Namespace) -> None:
    """Start Ray nodes on this machine."""
    from cluster import nodes

    since = time.monotonic()
    state = nodes.up(args.nodes, cpus=args.cpus_per_node, port=args.port, dashboard_port=args.dashboard_port)
    took = time.monotonic() - since
    show(f"{state.nodes} nodes at {state.address} after {took:.0f} s, dashboard {state.dashboard}")
    show("send a job    d2sm submit -- COMMAND ...")
    show(f"join it       export RAY_ADDRESS={state.address} RAY_AUTH_MODE=token")
    show("end it        d2sm cluster down")


def run_status(args: argparse.Namespace) -> int:
    """Which nodes are alive; 1 when some or all are not."""
    from cluster import nodes

    state = nodes.read()
    if state is None:
        show("no cluster; `d2sm cluster up` starts one")
        return 1
    alive = nodes.alive(state)
    show(f"{len(alive)} of {state.nodes} nodes alive at {state.address}, dashboard {state.dashboard}")
    rows = [["node", "role", "CPU"]]
    for node in alive:
        total = node.get("resources_total")
        cpus = total.get("CPU", 0) if isinstance(total, dict) else 0
        rows.append([str(node.get("node_id"))[:8], "head" if node.get("is_head_node") else "worker", f"{cpus:g}"])
    show(columns(rows))
    return 0 if len(alive) >= state.nodes else 1


def run_add(args: argparse.Namespace) -> None:
    """One more worker node."""
    from cluster import nodes

    state = nodes.add(cpus=args.cpus)
    show(f"{counted(len(nodes.alive(state)), 'node')} alive at {state.address}")


def run_kill(args: argparse.Namespace) -> None:
    """Kill a worker node."""
    from cluster import nodes

    show(f"node {args.number} killed, {nodes.kill(args.number)} processes ended")


def run_down(args: argparse.Namespace) -> None:
    """End all nodes."""
    from cluster import nodes

    ended = nodes.down()
    show(f"{ended} processes ended" if ended else "no cluster was up")
