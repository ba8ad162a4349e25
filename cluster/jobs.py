"""A verb as a Ray job: send it, follow its log, wait for it, stop it. The job does not depend on the sender.

job = submit(["train", "--recipe", "ffdnet_d2sm_cpu", "data.root=/data/cityscapes", "train.storage=/storage"])
job.follow()
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from cluster import dashboard
from cluster.cli.arguments import check_store, for_cluster
from cluster.dashboard import ClusterError
from cluster.working_dir import working_directory
from d2sm import __version__
from pipelines.runtime import auth
from pipelines.runtime.leaving import INTERRUPTED
from pipelines.secrets import HIDDEN, NOT_SENT, in_variable, of_environment
from pipelines.text import did_you_mean, one_line, redact, show

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

_T = TypeVar("_T")
_STORE = "MLFLOW_TRACKING_URI"  # of this machine; sent along
_PINS = "pins.txt"  # of a checkout; an installed package has it in share/d2sm
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_PATIENCE = 300.0  # seconds without an answer from the head after which following a job is given up
# `stop` sends the verb Ctrl-C: it writes a checkpoint and closes its MLflow run as KILLED. After 60 s it is killed.
_STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


class _NoSuchJobError(ClusterError):
    """The head answers and has no job of this id, so asking again does not help."""


class _OutputError(Exception):
    """The log was received and could not be printed; the error of the output is its cause."""


@dataclass(frozen=True)
class Job:
    """A verb on a cluster, by its id there."""

    id: str
    address: str

    def info(self) -> JobDetails:
        """What the cluster says of it: status, entrypoint, message, times."""
        client = dashboard.client(self.address)
        try:
            with dashboard.plain_errors(self.address):
                return client.get_job_info(self.id)
        except ClusterError as error:
            if "status code 404" in str(error):  # Ray's words; "404" alone may be part of a job's id
                near = _nearest(self.id, self.address)
                raise _NoSuchJobError(f"{self.id}: no such job at {self.address}{near}") from None
            raise

    def status(self) -> str:
        """PENDING, RUNNING, or how it ended: SUCCEEDED, FAILED, STOPPED."""
        return str(self.info().status.value)

    def logs(self) -> str:
        """All that it has printed so far."""
        self.info()
        client = dashboard.client(self.address)
        with dashboard.plain_errors(self.address):
            return str(client.get_job_logs(self.id))

    def wait(self, timeout: float | None = None) -> str:
        """Wait until it has ended; gives its status, also when the time is up before."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            status = _patiently(self.status)
            if status in _ENDED or time.monotonic() >= end:
                return status
            time.sleep(min(1.0, max(0.05, end - time.monotonic())))

    def follow(self, out: TextIO | None = None, *, raw: bool = False) -> str:
        """Print its log from the beginning until it has ended; gives its status.

        Args:
            out: where to; stdout.
            raw: every line, Ray's own as well.

        Raises:
            ClusterError: the head has not answered for 5 minutes, or has no such job.
            OSError: the log cannot be printed: nobody reads `out` any more, or its disk is full.
        """
        printer, patience = LogPrinter(out or sys.stdout, raw=raw), _Patience()
        self._until_it_runs(printer)
        while True:
            try:
                _patiently(lambda: asyncio.run(self._tail(printer, patience)), patience)
            except _OutputError as error:
                raise error.__cause__ or error from None
            status = _patiently(self.status)
            if status in _ENDED:
                printer.close()
                return status
            time.sleep(1)  # the connection was lost, not the job

    def stop(self) -> str:
        """End it, as Ctrl-C would: its last checkpoint stays. Gives the status it ended with."""
        self.info()
        client = dashboard.client(self.address)
        with dashboard.plain_errors(self.address):
            client.stop_job(self.id)
        return self.wait(timeout=90)

    def exit_code(self) -> int:
        """0 when it succeeded, its own code when it failed, that of a command after Ctrl-C when it was stopped; else 1.

        Ray keeps no exit code of a job that was stopped.
        """
        info = self.info()
        ended = {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}
        return ended.get(info.status.value, int(info.driver_exit_code or 1))

    def _until_it_runs(self, printer: LogPrinter) -> None:
        told, since = "", time.monotonic()
        while (info := _patiently(self.info)).status.value == "PENDING":
            if info.message and info.message != told and time.monotonic() - since > 10:
                printer.note(info.message)
                told = info.message
            time.sleep(0.5)

    async def _tail(self, printer: LogPrinter, patience: _Patience) -> None:
        """Print what arrives over one connection, which may last as long as the job."""
        seen = 0  # the log comes from its beginning again at each connection
        skip = printer.taken
        async for text in dashboard.client(self.address).tail_job_logs(self.id):
            patience.answered()
            fresh = text[max(0, skip - seen) :]
            seen += len(text)
            if fresh:
                try:
                    printer.write(fresh)
                except OSError as error:  # not the head's, which would be asked again
                    raise _OutputError from error


class LogPrinter:
    """Prints a job's log line by line, progress as lines of their own; leaves out secrets and Ray's own messages."""

    _NOISE = re.compile(
        r"Running entrypoint for job|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(INFO|WARNING) \S+\.py:\d+ --|"
        r"\s+\[(\d{4}-\d\d-\d\d|state-dump)|\t\(\d\) "  # the last lines of a lost node's log
    )
    _COLOUR = re.compile(r"\x1b\[[\d;]*m")
    # Ray's own processes write to the same stream, often in the middle of a progress line.
    _REMARK = re.compile(r"(\(raylet[^)]*\)|\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] ).*")

    def __init__(self, out: TextIO, *, raw: bool = False) -> None:
        self.out, self.raw, self.taken = out, raw, 0
        self._rest, self._early = "", False

    def write(self, text: str) -> None:
        self.taken += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)
        if "\r" in self._rest:  # progress ends its line only when the next one comes, half a minute later
            self._line(self._rest)
            self._rest, self._early = "", True

    def note(self, text: str) -> None:
        """Print a line that is not part of the log."""
        show(redact(text), file=self.out)

    def close(self) -> None:
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _line(self, line: str) -> None:
        if not line and self._early:  # the end of a line that is printed already
            self._early = False
            return
        self._early = False
        for part in [part for part in self._COLOUR.sub("", line).split("\r") if part.strip()] or [""]:
            if self.raw:
                show(redact(part.rstrip()), file=self.out)
            elif not self._NOISE.match(part) and ((shown := self._REMARK.sub("", part)) or not part):
                show(redact(shown.rstrip()), file=self.out)


def submit(
    verb: Sequence[str],
    *,
    address: str | None = None,
    cpus: float = 0,
    gpus: float = 0,
    memory: int | None = None,
    resources: Mapping[str, float] | None = None,
    env: Mapping[str, str] | None = None,
    include: Sequence[str | Path] = (),
    install: bool = False,
    preflight: bool = True,
) -> Job:
    """Send a verb of the command line to a cluster as a job; return as soon as the cluster has it.

    Args:
        verb: the words after `d2sm`, such as ["train", "--recipe", "demo", "data.root=/data"].
        address: of the head's dashboard, such as http://head:8265; None: see `dashboard.address_of`.
        cpus: CPUs reserved for the verb's own process; 0 runs it on the head, the node least likely to be lost.
        gpus: GPUs likewise. Training workers reserve their own, by train.num_workers and train.use_gpu.
        memory: bytes likewise.
        resources: custom Ray resources likewise.
        env: environment variables of the job. Everybody who sees the cluster can read them: no secrets.
        include: files and folders to send along with the code.
        install: install pins.txt on the nodes first; False: their image has all packages.
        preflight: check resources, data, storage and weights before the verb starts.

    Raises:
        ClusterError, AuthError, WorkingDirError, ConfigError: each one line, and nothing was sent.
    """
    address = dashboard.address_of(address)
    variables = _variables(env or {}, verb)
    _no_secrets(verb, variables, env or ())
    verb, files = for_cluster(verb, store=variables.get(_STORE, ""))
    dashboard.check(address)
    entrypoint = ["python", "-m", "cluster.job_entrypoint", *([] if preflight else ["--no-preflight"]), "--", *verb]
    client = dashboard.client(address)
    given = {Path(each).resolve() for each in include}
    carried = [*include, *(file for file in files if file.resolve() not in given)]
    with (
        working_directory(carried) as folder,
        dashboard.plain_errors(address),
    ):
        environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": _STOP | variables}
        if install:
            environment["pip"] = {"packages": _pins(), "pip_check": False}
        sent = client.submit_job(
            entrypoint=f"exec {shlex.join(entrypoint)}",
            submission_id=f"d2sm-{verb[0]}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}",
            runtime_env=environment,
            metadata={"d2sm.version": __version__, "d2sm.verb": verb[0]},
            entrypoint_num_cpus=cpus,
            entrypoint_num_gpus=gpus,
            entrypoint_memory=memory,
            entrypoint_resources=dict(resources) if resources else None,
        )
    return Job(str(sent), address)


def listing(address: str) -> list[JobDetails]:
    """The jobs that were submitted to a cluster, newest first."""
    dashboard.check(address)
    client = dashboard.client(address)
    with dashboard.plain_errors(address):
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0, reverse=True)


def _variables(given: Mapping[str, str], verb: Sequence[str]) -> dict[str, str]:
    """The job's variables. This machine's MLFLOW_TRACKING_URI is one, so that the job logs where this machine would.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is a database at a relative path.
    """
    variables = dict(given)
    inherited = os.environ.get(_STORE)
    if inherited and not any(word.startswith("tracking.uri=") for word in verb):
        variables = {_STORE: inherited, **given}
    if uri := variables.get(_STORE):
        check_store(f"--env {_STORE}" if _STORE in given else _STORE, uri)
    return variables


def _no_secrets(verb: Sequence[str], variables: Mapping[str, str], typed: Collection[str]) -> None:
    """Refuse secrets in the command and the variables: everybody who sees the cluster can read a job's record.

    Args:
        typed: names of the variables that --env gave; the others are this machine's, and are sent unasked.
    """
    own = [*filter(None, [auth.token()]), *of_environment()]
    places = {name: f"--env {name}" if name in typed else name for name in variables}
    remedies = {name: "" if name in typed else f"; unset it here: env -u {name} d2sm submit ..." for name in variables}
    for name, value in variables.items():
        if line := in_variable(name, value, asked_by=places[name]):
            raise ClusterError(line + remedies[name])
    words = [("the command", word, "") for word in verb]
    for where, text, remedy in [*words, *((places[name], variables[name], remedies[name]) for name in variables)]:
        shown = redact(text)
        for secret in own:
            shown = shown.replace(secret, HIDDEN)
        if shown != text:
            raise ClusterError(f"{where}: {shown}: {NOT_SENT}{remedy}")


def _pins() -> list[str]:
    root = Path(__file__).resolve().parents[1]
    places = [root / _PINS, *(Path(str(file.locate())) for file in _installed_files() if file.name == _PINS)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ClusterError(f"--install: {places[0]} is not there; submit from a checkout of the project")
    lines = found.read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def _installed_files() -> list[metadata.PackagePath]:
    try:
        return metadata.files("d2sm") or []
    except metadata.PackageNotFoundError:
        return []


class _Patience:
    """How long a head that does not answer is asked again: it may be restarting, and the job goes on meanwhile."""

    def __init__(self) -> None:
        self._end: float | None = None  # time.monotonic() at which it is given up; None: it answered last

    def answered(self) -> None:
        self._end = None

    def failed(self, error: Exception) -> None:
        """Wait before it is asked again; raise ClusterError if it has not answered for too long."""
        now = time.monotonic()
        if self._end is None:
            self._end = now + _PATIENCE
        if now > self._end:
            raise ClusterError(one_line(error)) from None
        time.sleep(2)


def _patiently(ask: Callable[[], _T], patience: _Patience | None = None) -> _T:
    """The answer to a request, which is made again while the head does not answer.

    Args:
        patience: is told of answers by a request that lasts long; None: the request is answered once.
    """
    from aiohttp import ClientError

    patience = patience or _Patience()
    while True:
        try:
            answer = ask()
        except _NoSuchJobError:
            raise
        except (ClientError, ClusterError, RuntimeError, OSError) as error:
            patience.failed(error)
        else:
            patience.answered()
            return answer


def _nearest(wanted: str, address: str) -> str:
    known = [str(job.submission_id) for job in listing(address)]
    return did_you_mean(wanted, known, cutoff=0.6) or "; `d2sm jobs list` shows them"
