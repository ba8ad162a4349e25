"""How Ray is started: reachable from this machine alone, importing what this process imports, and refused in a line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.runtime import session
from pipelines.runtime.session import SessionError

ROOT = Path(__file__).resolve().parents[3]
START = """
import os, sys, threading
from pipelines.runtime import leaving, native, session
leaving.guard()
native.set_aside()
session.start(cpus=1)
import psutil, ray

@ray.remote
def imported():
    import json, pipelines, torch
    from pipelines.runtime import threads
    variables = {name: os.environ.get(name) for name in session.ENVIRONMENT | session.SINGLE_MACHINE}
    own = ray.get_runtime_context().runtime_env, session.started_here()
    files = [json.__file__, pipelines.__file__, torch.__file__]
    return files, sys.path.index(os.getcwd()), len(sys.path), variables, own

files, place, length, variables, own = ray.get(imported.remote())
print(files, place, length, variables, own)
# Without variables of its own, a task begins in a process that Ray has ready, which has inherited them.
assert variables == session.ENVIRONMENT | session.SINGLE_MACHINE, variables
assert own == ({}, True) and session.started_here(), own
assert not any(os.getcwd() in file for file in files), files
listening = set()
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    listening |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"}
print(listening)
assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening
token = os.path.expanduser("~/.ray/auth_token")
assert os.stat(token).st_mode & 0o777 == 0o600
# The name of the thread that prints what the raylet reports is Ray's own affair.
assert native._REPORTS in {thread.name for thread in threading.enumerate()}, threading.enumerate()
reporter = threading.Thread(target=print, args=("(raylet) 8 workers were started",), name=native._REPORTS)
reporter.start()
reporter.join()
print("fine", flush=True)

@ray.remote
def forever():
    import time
    time.sleep(600)

waiting = forever.remote()
for process in psutil.Process().children():
    if process.name() == "gcs_server":
        process.kill()
try:
    ray.get(waiting)
except leaving.LostError as error:
    leaving.leave(1, str(error))
"""


def test_ray_on_this_machine(tmp_path: Path) -> None:
    """It listens on loopback alone; its workers import what this process imports; and killed, it is missed in one line.

    In the current folder are folders and files that are called like ours, like torch and like Python's own.
    """
    for name in ("pipelines", "cluster", "tuning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('shadowed')")
    for name in ("torch.py", "ray.py", "json.py", "queue.py", "d2sm.py"):
        (tmp_path / name).write_text("raise ImportError('shadowed')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    # Not with -c or -m, which put the current folder first for Python itself: as the installed command starts.
    script = tmp_path / "bin" / "start.py"
    script.parent.mkdir()
    script.write_text(START)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 1 and "fine" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "(raylet)" not in done.stdout
    assert re.fullmatch(
        r"d2sm: Ray on this machine has ended \(its process gcs_server: .*\); the same command goes on from what is "
        r"complete on disk \(the last checkpoint\), or begins again\n",
        done.stderr,
    ), done.stderr[-3000:]


def test_a_temporary_folder_whose_path_is_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with pytest.raises(SessionError, match=f"RAY_TMPDIR={folder}: .* too long for the paths of Ray's sockets") as error:
        session._check_temporary_folder()
    assert "\n" not in str(error.value) and not folder.exists()
    most = int(str(error.value).rsplit(" ", 1)[-1])
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "y" * (most - 4))
    with pytest.raises(SessionError, match=f": 1 characters too long.*at most {most}"):
        session._check_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path.parent)[:most])
    session._check_temporary_folder()


def test_a_temporary_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        monkeypatch.setenv("TMPDIR", file.name)
        with pytest.raises(SessionError, match=f"TMPDIR={file.name}: Ray cannot keep its files there .Not a directory"):
            session._check_temporary_folder()


def test_a_temporary_folder_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(session, "_RAY_NEEDS", 2**60)  # more than any disk has
    with pytest.raises(SessionError) as error:
        session._check_temporary_folder()
    line = str(error.value)
    assert line.startswith("RAY_TMPDIR=/tmp: ") and " are free, and Ray's own files need " in line and "\n" not in line
    assert line.endswith("free some space, or set RAY_TMPDIR to a folder on another disk")


def test_a_disk_that_fills_up_while_ray_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert session.full_disk() == ""
    monkeypatch.setattr(session, "_RAY_STOPS", 2**60)  # more than any disk has
    line = session.full_disk()
    assert line.startswith(f"RAY_TMPDIR={tmp_path}: ") and " are free, and Ray's processes fail without" in line
    assert line.endswith("set RAY_TMPDIR to a folder on another disk") and "\n" not in line
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # the cluster's nodes have disks of their own
    assert session.full_disk() == ""


def test_ray_that_cannot_be_started_is_one_line() -> None:
    """Whatever Ray raises: here it cannot read what it is told of this machine's resources."""
    code = """
from pipelines.runtime import session
try:
    session.start(cpus=1)
except session.SessionError as error:
    print(error)
"""
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": "{"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT, env=environment
    )
    assert re.fullmatch(r"Ray cannot be started on this machine \(.*property name.*\); see whether .*\n", done.stdout)
