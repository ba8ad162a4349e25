"""Following a job: what a lost connection, a head that is gone and an output that nobody reads do to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import ray
from aiohttp import web

from cluster import jobs
from cluster.cli.main import main
from cluster.dashboard import ClusterError

JOB = "d2sm-train-0404-120000-ab12"  # its name holds the status of a job that is not there


class Connection(NamedTuple):
    """What the head does when the log is asked for: it sends a text, waits, and closes or loses the connection."""

    text: str
    seconds: float = 0
    lost: bool = False


class Head:
    """What Ray's head answers about one job, over HTTP on loopback; the job ends, as `end` says, with the script."""

    def __init__(self, *script: Connection, status: int = 200, end: str = "SUCCEEDED") -> None:
        self.script, self.status, self.end, self.address = list(script), status, end, ""
        self._loop, self._listens = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Head:
        self._thread.start()
        assert self._listens.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        app = web.Application()
        app.add_routes([
            web.get("/api/version", self._version), web.get("/api/jobs/", self._all),
            web.get(f"/api/jobs/{JOB}", self._job), web.get(f"/api/jobs/{JOB}/logs/tail", self._tail),
        ])  # fmt: skip
        runner = web.AppRunner(app, shutdown_timeout=0.1)

        async def start() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._listens.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": ""})

    async def _all(self, _: web.Request) -> web.Response:
        return web.json_response([])

    async def _job(self, _: web.Request) -> web.Response:
        if self.status != 200:
            return web.Response(status=self.status, text=f"of job {JOB} nothing can be said now")
        told = {"type": "SUBMISSION", "entrypoint": "", "submission_id": JOB}
        if self.script:
            return web.json_response({**told, "status": "RUNNING"})
        code = {"driver_exit_code": 2, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"} if self.end == "FAILED" else {}
        return web.json_response({**told, "status": self.end, **code})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        text, seconds, lost = self.script[0]
        await socket.send_str(text)
        await asyncio.sleep(seconds)
        del self.script[0]
        if lost and request.transport:
            request.transport.abort()
        await socket.close()
        return socket


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    yield


def test_a_job_is_followed_longer_than_the_head_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head answers before each loss; the log comes from its beginning again, and is printed once."""
    monkeypatch.setattr(jobs, "_PATIENCE", 2.5)
    script = [Connection("one\n", lost=True), Connection("one\n", 1.5, lost=True), Connection("one\ntwo\n")]
    out = io.StringIO()
    with Head(*script) as head:
        assert jobs.Job(JOB, head.address).follow(out) == "SUCCEEDED"
    assert out.getvalue() == "one\ntwo\n"


def test_a_head_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE", 1.0)
    with Head(Connection("one\n"), Connection("")) as head:
        job = jobs.Job(JOB, head.address)
        assert job.status() == "RUNNING"
    with pytest.raises(ClusterError, match=f"{head.address}: no Ray cluster answers"):
        job.follow(io.StringIO())


@pytest.mark.parametrize("wrong", [errno.EPIPE, errno.ENOSPC])
def test_a_log_that_cannot_be_printed_ends_the_following(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with the error of the output: `d2sm jobs logs -f ID | head -1`, and a full disk."""
    monkeypatch.setattr(jobs, "_PATIENCE", 120.0)
    if wrong == errno.EPIPE:
        nobody, writes = os.pipe()
        os.close(nobody)
    else:
        writes = os.open("/dev/full", os.O_WRONLY)
    out = os.fdopen(writes, "w")
    with Head(Connection("one\n", 5)) as head, pytest.raises(OSError) as error:
        since = time.monotonic()
        jobs.Job(JOB, head.address).follow(out)
    assert error.value.errno == wrong and time.monotonic() - since < 60
    with contextlib.suppress(OSError):  # its buffer cannot be written either
        out.close()


@pytest.mark.parametrize(("end", "code"), [("SUCCEEDED", 0), ("FAILED", 2), ("STOPPED", 130)])
def test_whoever_waits_for_a_job_ends_with_its_code(end: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """That of a stopped one, for which Ray has none, is the command's own after Ctrl-C."""
    with Head(end=end) as head:
        assert main(["jobs", "wait", JOB, "--address", head.address]) == code
    assert f"job {JOB} {end.lower()}" in capsys.readouterr().err


def test_a_job_is_missing_where_the_head_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where another error's text holds a 404, as a job's id may; a missing one is not asked for again."""
    monkeypatch.setattr(jobs, "_PATIENCE", 120.0)
    with Head(status=500) as head, pytest.raises(ClusterError, match=f"status code 500: of job {JOB} nothing"):
        jobs.Job(JOB, head.address).info()
    since = time.monotonic()
    with Head(status=404) as head, pytest.raises(ClusterError, match=f"{JOB}: no such job at {head.address}"):
        jobs.Job(JOB, head.address).follow(io.StringIO())
    assert time.monotonic() - since < 60
