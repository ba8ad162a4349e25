"""Several Ray nodes on this machine, to try a cluster and for tests.

The dashboard, where jobs are submitted, listens on loopback. Ray's other ports listen on all interfaces and cannot be
told otherwise, so all of them require Ray's token.

`up` records what it starts in one small file. Each node is the leader of a process session and carries a mark in its
environment, which its child processes inherit. `down` ends the processes with the mark or of the session, no others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from cluster import constants
from pipelines import parsing
from pipelines.runtime import auth, files
from pipelines.runtime.progress import stage

MARK = "D2SM_CLUSTER_MARK"
OBJECT_STORE = 512 * 2**20  # bytes for each node; crops are small
_PATIENCE = 180.0  # seconds to wait for a node to start
_TRIES = 3
_TEMP = Path("/tmp")  # short, because the paths of a node's sockets are limited
_Running = dict[int, "subprocess.Popen[bytes]"]


class NodesError(ValueError):
    """A local cluster that cannot be started or stopped. One line."""


@dataclass(frozen=True)
class State:
    """The processes and addresses of a cluster that `up` started. Contains no secret."""

    mark: str
    address: str  # host:port, for RAY_ADDRESS
    dashboard: str  # http://host:port, for jobs
    temp: str
    nodes: int
    sessions: tuple[int, ...] = ()  # process ids of the session leaders; valid until the machine restarts
    boot: str = ""


def path() -> Path:
    """The file that holds the state: D2SM_CLUSTER, else ~/.d2sm/cluster.json. Another file is another cluster."""
    return Path(os.environ.get("D2SM_CLUSTER") or Path.home() / ".d2sm" / "cluster.json")


def read() -> State | None:
    """The cluster that `up` started, if there is one."""
    if not path().exists():
        return None
    remedy = "it holds no state of a cluster; remove the file"
    state = parsing.read_json(path(), State, error=NodesError, remedy=remedy)
    temp = Path(state.temp)  # `down` removes it
    if (
        not re.fullmatch(r"d2sm-[0-9a-f]{8}", state.mark)
        or temp.parent != _TEMP
        or not temp.name.startswith(state.mark)
    ):
        raise NodesError(f"{path()}: mark={state.mark}, temp={state.temp}: not the names of `cluster up`; {remedy}")
    return state


def up(
    nodes: int = 3, *, cpus: int = 2, port: int = constants.GCS_PORT, dashboard_port: int = constants.DASHBOARD_PORT
) -> State:
    """Start a head and `nodes - 1` workers; return when all have joined and the cluster takes jobs.

    Args:
        nodes: Ray nodes in all.
        cpus: CPUs that each node reports to Ray. All nodes share this machine's cores.
        port: of the head; 0: a free one.
        dashboard_port: of the dashboard; 0: a free one.

    Raises:
        NodesError: one is already up, a port is taken, or a node does not start.
    """
    if nodes < 1 or cpus < 1:
        raise NodesError(f"--nodes {nodes} --cpus-per-node {cpus}: at least one of each")
    if (known := read()) and ours(known):
        raise NodesError(f"{known.address}: a cluster is already up; `d2sm cluster down` ends it")
    down()  # removes what an earlier cluster left behind
    port, dashboard_port = _port(port, "--port"), _port(dashboard_port, "--dashboard-port")
    _secure()
    stage(f"starting {nodes} Ray nodes on this machine")
    mark = f"d2sm-{secrets.token_hex(4)}"
    state = State(
        mark=mark,
        address=f"{constants.LOOPBACK}:{port}",
        dashboard=f"http://{constants.LOOPBACK}:{dashboard_port}",
        temp="",
        nodes=nodes,
        boot=_boot(),
    )
    try:
        return _started(state, cpus, dashboard_port)
    except NodesError:  # on a busy machine the start may take longer than Ray waits: try once more
        return _started(state, cpus, dashboard_port)


def add(*, cpus: int = 2) -> State:
    """Start one more worker node for the running cluster; return when it has joined.

    Raises:
        NodesError: none is up, or the node does not start; its processes are ended, and the cluster is as before.
    """
    if cpus < 1:
        raise NodesError(f"--cpus {cpus}: at least one")
    before = _known()
    stage("starting a Ray node")
    joined = len(alive(before))
    # Recorded before it has joined, so that `down` finds it whatever happens to this process meanwhile.
    state, process = _node(before, before.nodes, cpus, [f"--address={before.address}"])
    try:
        _until(lambda: len(alive(state)) > joined, {before.nodes: process}, state, "the new node")
    except BaseException:
        _end(process.pid, ours(state))
        process.kill()
        process.wait()
        _written(before)
        raise
    return _written(replace(state, nodes=before.nodes + 1))


def kill(number: int = 1) -> int:
    """Kill a worker node and all its processes at once, as a power cut would; return the number of processes.

    Args:
        number: of the worker node among the living ones, from 1.

    Raises:
        NodesError: no cluster is up, or it has no such node.
    """
    state = _known()
    processes = ours(state)
    workers = [pid for pid in state.sessions[1:] if pid in {_session(process) for process in processes}]
    if not 1 <= number <= len(workers):
        raise NodesError(f"node {number}: there are {len(workers)} worker nodes; `d2sm cluster down` ends the head too")
    return _end(workers[number - 1], processes)


def _end(leader: int, processes: Sequence[psutil.Process]) -> int:
    """Kill all processes of a node, which is a session with this leader; return their number."""
    doomed = [process for process in processes if _session(process) == leader]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return len(doomed)


def _known() -> State:
    state = read()
    if state is None or not ours(state):
        raise NodesError("no cluster is up; `d2sm cluster up` starts one")
    return state


def _started(state: State, cpus: int, dashboard_port: int) -> State:
    state = replace(state, temp=tempfile.mkdtemp(prefix=f"{state.mark}-", dir=_TEMP))  # for this user alone
    try:
        return _start(_written(state), cpus, dashboard_port)
    except BaseException:
        down()
        raise


def _written(state: State) -> State:
    if "D2SM_CLUSTER" in os.environ:
        path().parent.mkdir(parents=True, exist_ok=True)
    else:
        files.private_folder(path().parent)
    files.write_text(path(), json.dumps(asdict(state), indent=2))
    return state


def _start(state: State, cpus: int, dashboard_port: int) -> State:
    host, _, port = state.address.rpartition(":")
    head = [f"--port={port}", f"--dashboard-host={host}", f"--dashboard-port={dashboard_port}", "--head"]
    head += ["--include-dashboard=true", f"--ray-client-server-port={_port(0)}"]
    state, process = _node(state, 0, cpus, head)
    running = {0: process}
    _until(lambda: _listens(host, int(port)), running, state, "the head's port")
    tries = dict.fromkeys(range(1, state.nodes), 0)
    end = time.monotonic() + _PATIENCE
    while len(alive(state)) < state.nodes:
        for number in tries:
            # Ray gives a worker 30 s to join and then ends it, which happens on a busy machine: start it again.
            if tries[number] < _TRIES and (number not in running or running[number].poll() is not None):
                tries[number] += 1
                state, running[number] = _node(state, number, cpus, [f"--address={state.address}"])
        _check_running(running, state, end, "all nodes")
        time.sleep(0.2)
    return state


def _node(state: State, number: int, cpus: int, words: Sequence[str]) -> tuple[State, subprocess.Popen[bytes]]:
    process = _ray_start(state, number, cpus, words)
    return _written(replace(state, sessions=(*state.sessions, process.pid))), process


def _ray_start(state: State, number: int, cpus: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *words]
    command += [f"--num-cpus={cpus}", f"--temp-dir={state.temp}/{number}", f"--object-store-memory={OBJECT_STORE}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--dashboard-agent-listen-port={_port(0)}"]  # the default port would be taken twice on one host
    before = os.environ.get("PYTHONPATH")
    environment = os.environ | {
        MARK: state.mark,
        # The nodes import this checkout, as they would import an image's code.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *([before] if before else [])]),
        "RAY_AUTH_MODE": "token",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # jobs say `python`
    }
    environment.pop("RAY_ADDRESS", None)
    log = Path(state.temp) / f"node-{number}.log"
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=state.temp,
            start_new_session=True,
        )  # fmt: skip


def _until(ready: Callable[[], bool], running: _Running, state: State, what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not ready():
        _check_running(running, state, end, what)
        time.sleep(0.2)


def _check_running(running: _Running, state: State, end: float, what: str) -> None:
    dead = [number for number, process in running.items() if process.poll() is not None]
    if dead or time.monotonic() > end:
        number = dead[0] if dead else next(iter(running))
        words = (Path(state.temp) / f"node-{number}.log").read_text(errors="replace").split()
        why = f"node {number} ended" if dead else f"{what} not ready after {_PATIENCE:g} s"
        raise NodesError(f"the cluster did not start: {why}: ... {' '.join(words)[-400:]}")


def alive(state: State) -> list[dict[str, object]]:
    """The nodes that are alive, as the dashboard reports them; empty while it does not answer."""
    headers = {"Authorization": f"Bearer {auth.token()}"}
    request = urllib.request.Request(f"{state.dashboard}/api/v0/nodes?limit=1000", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [node for node in found if node.get("state") == "ALIVE"]


def down() -> int:
    """End all that `up` started, jobs included, and remove its files; return the number of processes.

    Raises:
        NodesError: a process cannot be ended.
    """
    state = read()
    if state is None:
        return 0
    processes = ours(state)
    for patience, end in ((8.0, psutil.Process.terminate), (8.0, psutil.Process.kill), (8.0, psutil.Process.kill)):
        left = ours(state)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(left, timeout=patience)
    if left := ours(state):
        raise NodesError(f"process {left[0].pid} does not end; end it, then `d2sm cluster down` again")
    shutil.rmtree(state.temp, ignore_errors=True)
    path().unlink(missing_ok=True)
    return len(processes)


def ours(state: State) -> list[psutil.Process]:
    """The living processes of this cluster, including those whose parent has ended."""
    known = state.sessions if state.boot == _boot() else ()
    # Session 0 belongs to the kernel and to processes without a session; no node is its leader.
    leaders = {pid for pid in known if pid > 0 and not _recycled(pid, state.mark)}
    everyone = list(psutil.process_iter())
    return [one for one in everyone if _lives(one) and (_marked(one, state.mark) or _session(one) in leaders)]


def _boot() -> str:
    """An id of the machine's current boot."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{psutil.boot_time():.0f}"


def _recycled(pid: int, mark: str) -> bool:
    """Whether the process id was reused by another process. A session keeps its leader's id while it has members."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return False
    return _lives(process) and not _marked(process, mark)


def _marked(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(MARK) == mark
    return False


def _session(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(process.pid)
    return 0


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _secure() -> None:
    """Refuse to start nodes without Ray's token; generate the user's token if there is none, as `ray.init` does."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise NodesError(
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: the nodes listen beyond loopback and would run "
            "whatever anybody sends them; unset it, or set it to token"
        )
    auth.make_token()


def _port(wanted: int, option: str = "") -> int:
    """The wanted port if it is free; a free one for 0."""
    try:
        with socket.create_server((constants.LOOPBACK, wanted)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError):
        raise NodesError(f"{option} {wanted}: not a free port; give another, or 0 for a free one") from None


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
