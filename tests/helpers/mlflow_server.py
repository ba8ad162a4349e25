"""A real MLflow server on this machine, for tests that stop it and start it again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Self


def free_port() -> int:
    """A port below those the system hands to outgoing connections, so that none gets it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    """Until the address answers; the log's end where it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (OSError, HTTPException):
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer: {log.read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children at once, as a power cut would. It leads its own process group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


class Server:
    """`mlflow server` with a sqlite backend and the artifact proxy, on a free port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = self.folder / "server.log"
        # Else it starts eight further processes for jobs of MLflow's own, each of which imports MLflow.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                words, cwd=self.folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            wait_for(f"{self.uri}/health", self._process, log)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        if self._process:
            stop(self._process)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
