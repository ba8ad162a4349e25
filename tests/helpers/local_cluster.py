"""A real cluster of several Ray nodes on this machine, in processes, ports, files and with a token of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Self

import psutil

from cluster import nodes

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "planted-0f3c59d2b7e84a61"  # looked for in everything that a run leaves behind
_D2SM = [sys.executable, "-c", "import sys; from cluster.cli import main; sys.exit(main())"]


class LocalCluster:
    """`d2sm cluster up` with a home folder of its own; `d2sm` runs a verb against it.

    Args:
        environment: variables that its processes get beside those of this process.
    """

    def __init__(self, folder: Path, *, nodes: int, **environment: str) -> None:
        self.folder, self.nodes = folder, nodes
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        self.environment = inherited | {
            "HOME": str(folder), "D2SM_CLUSTER": str(folder / "cluster.json"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT), **environment,
        }  # fmt: skip
        (folder / ".ray").mkdir(parents=True)
        (folder / ".ray" / "auth_token").write_text(TOKEN)

    @property
    def state(self) -> nodes.State:
        before = os.environ.get("D2SM_CLUSTER")
        os.environ["D2SM_CLUSTER"] = self.environment["D2SM_CLUSTER"]
        try:
            found = nodes.read()
        finally:
            os.environ.pop("D2SM_CLUSTER")
            if before is not None:
                os.environ["D2SM_CLUSTER"] = before
        assert found is not None
        return found

    def processes(self, name: str) -> list[psutil.Process]:
        """The living processes of Ray's that are called so, such as RayTrainWorker; those of the oldest node first."""
        state = self.state
        found = [process for process in nodes.ours(state) if name in " ".join(_words(process))]
        return sorted(found, key=lambda process: (state.sessions.index(os.getsid(process.pid)), process.pid))

    def node_of(self, process: psutil.Process) -> int:
        """The number of the worker node that a process runs on, as `d2sm cluster kill` counts; 0 for the head."""
        living = {os.getsid(one.pid) for one in nodes.ours(self.state)}
        sessions = [session for session in self.state.sessions if session in living]
        return sessions.index(os.getsid(process.pid))

    def start(self, *words: str, output: IO[str] | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start a verb.

        Args:
            output: takes stdout and stderr; None: pipes.
        """
        return subprocess.Popen(
            [*_D2SM, *words], env=self.environment | environment, cwd=self.folder, text=True,
            stdout=output or subprocess.PIPE, stderr=output or subprocess.PIPE,
        )  # fmt: skip

    def d2sm(self, *words: str, code: int = 0, **environment: str) -> tuple[str, str]:
        """Runs a verb to its end; what it printed and what it complained of, without the line about loading Ray."""
        process = self.start(*words, output=None, **environment)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == code, f"{words}: exit code {process.returncode}\n{out}\n{err}"
        assert TOKEN not in out + err
        return out, re.sub(r"(?m)^d2sm: loading .*\n", "", err)

    def __enter__(self) -> Self:
        self.d2sm("cluster", "up", "--nodes", str(self.nodes), "--port", "0", "--dashboard-port", "0",
                  "--cpus-per-node", "1")  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.d2sm("cluster", "down")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def interrupt_after(process: subprocess.Popen[str], line: str) -> tuple[str, str]:
    """Ctrl-C once a line has been printed."""
    assert process.stdout is not None
    seen = ""
    while line not in seen:
        new = process.stdout.readline()
        assert new, f"ended before {line!r}: {seen}"
        seen += new
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return seen + out, err
