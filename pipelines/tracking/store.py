"""The MLflow store of a configuration: its URI, whether it answers, and a client for it.

MLflow's own client retries for minutes if a server is down, and its messages hold the password. Errors raised here are
one line without the password, within seconds. mlflow is slow to import, so it is imported where it is used.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import shlex
import socket
import sqlite3
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import secrets
from pipelines.config import Config
from pipelines.runtime import files, private
from pipelines.text import one_line, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VARIABLE = "MLFLOW_TRACKING_URI"  # the only place of a URI with a password: nobody else reads a process's environment
ARTIFACTS = "mlartifacts"  # folder of the artifacts, beside a database
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of the databases that MLflow accepts beside sqlite


class TrackingError(ValueError):
    """MLflow cannot be used as configured. One line: the URI without its password, what is wrong, the remedy."""


def uri_of(config: Config) -> str:
    """The store's URI: tracking.uri, else MLFLOW_TRACKING_URI, else a sqlite file in train.storage.

    The path of a sqlite file is made absolute, because Ray's processes may run in other folders.

    Raises:
        TrackingError: a folder of files (MLflow 3 no longer writes to one), or an unknown kind of store; or no store is
            given and train.storage is a URI, or a folder that no database can lie in (`sqlite_uri`).
    """
    if config.tracking.uri:
        return absolute(config.tracking.uri, asked_by="tracking.uri")
    if inherited := os.environ.get(_VARIABLE):
        return absolute(_inherited(inherited), asked_by=_VARIABLE)
    if "://" in config.train.storage:
        raise TrackingError(
            f"train.storage={redact(config.train.storage)}: MLflow's database cannot be kept there; give tracking.uri, "
            "or MLFLOW_TRACKING_URI, such as http://host:5000 or sqlite:///<folder>/mlflow.db"
        )
    return sqlite_uri(Path(config.train.storage).absolute() / "mlflow.db", asked_by="train.storage")


def sqlite_uri(path: str | Path, *, asked_by: str) -> str:
    """The URI of a database on this machine.

    Args:
        asked_by: the key, variable or file that gave the path, for the message.

    Raises:
        TrackingError: the path holds what a URI of SQLAlchemy cannot: it would open another file.
    """
    if found := re.search(r"\?|%[0-9a-fA-F]{2}", str(path)):
        raise TrackingError(
            f"{asked_by}: {path}: MLflow's database cannot lie at a path with {found[0]}, as its URI means another; "
            "rename the folder, or give tracking.uri=sqlite:///<folder>/mlflow.db or a server's address"
        )
    return f"sqlite:///{path}"


def _inherited(uri: str) -> str:
    """The URI of the environment; the password of a server goes from it to the variables that MLflow has for that.

    Then the URI can be shown, stored and sent to workers. MLflow knows no such variables for a database's password.
    """
    parts = urllib.parse.urlsplit(uri)
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    if parts.scheme not in ("http", "https") or not colon:
        return uri
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", urllib.parse.unquote(user))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", urllib.parse.unquote(password))
    os.environ[_VARIABLE] = bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare


def absolute(uri: str, *, asked_by: str = "tracking.uri") -> str:
    """The URI with the path of a sqlite file made absolute, ~ included; other URIs are returned as they are.

    Args:
        asked_by: the key or variable that gave the URI, for the message.

    Raises:
        TrackingError: see `uri_of` and `sqlite_uri`; or it holds a secret and is not the value of MLFLOW_TRACKING_URI.
    """
    if uri != os.environ.get(_VARIABLE) and (line := secrets.problem(uri, asked_by=asked_by)):
        raise TrackingError(line)
    try:
        scheme = urllib.parse.urlsplit(uri).scheme.split("+")[0]
        uri.encode()
    except ValueError as error:
        raise TrackingError(f"{asked_by}={redact(uri)}: not a valid URI ({one_line(error)}); correct it") from None
    if scheme == "sqlite":
        path = uri.partition(":///")[2].partition("?")[0]
        if not path or path == ":memory:":
            raise TrackingError(
                f"{asked_by}={uri}: a database in memory is lost at the end; give sqlite:///<folder>/mlflow.db"
            )
        whole = os.path.join(Path.cwd(), os.path.expanduser(path))
        sqlite_uri(whole, asked_by=asked_by)
        return uri.replace(f":///{path}", f":///{whole}", 1)
    if scheme in ("http", "https", "databricks", *_PORTS):
        return uri
    if scheme in ("", "file"):
        raise TrackingError(
            f"{asked_by}={uri}: MLflow 3 no longer writes to a folder of files; "
            f"give sqlite:///<folder>/mlflow.db or the http:// address of a server "
            f"(`mlflow migrate-filestore` moves an old folder)"
        )
    raise TrackingError(
        f"{asked_by}={redact(uri)}: unknown kind of store; "
        f"give sqlite:///<folder>/mlflow.db, a server's http:// address, or a postgresql:// or mysql:// URI"
    )


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI; None for any other."""
    if not urllib.parse.urlsplit(uri).scheme.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def check(uri: str, *, timeout: float = 5.0) -> None:
    """Make sure that a server answers. A sqlite file needs no check; a database whose URI names no host gets none.

    Raises:
        TrackingError: nothing answers within `timeout` seconds.
    """
    parts = urllib.parse.urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    try:
        if kind in ("http", "https"):
            _check_health(parts, timeout)
        elif kind in _PORTS and parts.hostname:
            socket.create_connection((parts.hostname, parts.port or _PORTS[kind]), timeout).close()
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: no HTTP
        reason = getattr(error, "reason", None) or error
        raise TrackingError(
            f"{redact(uri)}: the tracking server does not answer ({one_line(reason)}); "
            f"start it, or give another with tracking.uri or MLFLOW_TRACKING_URI"
        ) from None


def _check_health(parts: urllib.parse.SplitResult, timeout: float) -> None:
    host = parts.netloc.rpartition("@")[2]  # urllib accepts no user:password@
    address = urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/health", "", ""))
    try:
        urllib.request.urlopen(address, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        # A proxy answers so for a server that is down; with any other status there is a server.
        if error.code in (502, 503, 504):
            raise


def client(uri: str) -> MlflowClient:
    """A client for the runs and the models of this store, which gives up within seconds.

    MLflow reads these variables at each request; those that are set already keep their values.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each of four small files
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would print the password
    from mlflow import MlflowClient

    for name in ("mlflow.system_metrics", "mlflow.pyfunc", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of each error that it raises
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning at each attempt
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def prepare(uri: str) -> MlflowClient:
    """A client for a store that is ready: a server has answered, a sqlite file has its tables.

    A sqlite file that several processes set up at the same time stays broken, hence the lock beside it.

    Raises:
        TrackingError: the store cannot be made, or does not answer.
    """
    check(uri)
    path = sqlite_file(uri)
    with plain_errors(uri, TrackingError):
        if path is None:
            ready = client(uri)
            ready.search_experiments(max_results=1)
            return ready
        from filelock import FileLock

        _check_database(path, uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=120):
            ready = client(uri)
            ready.search_experiments(max_results=1)  # the first request creates the tables
            _follow_artifacts(path)
        return ready


def _check_database(path: Path, uri: str) -> None:
    """Make sure that a file, if it is there, is a database: MLflow tries for a minute to open one that is none.

    Raises:
        TrackingError: it is none, or is damaged.
    """
    if path.exists() and not path.is_file():
        raise TrackingError(
            f"{redact(uri)}: not a regular file; give another store with tracking.uri or MLFLOW_TRACKING_URI"
        )
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True)) as opened:
            opened.execute("SELECT name, sql FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        if "locked" not in str(error):  # by a process that writes
            raise TrackingError(reason(uri, str(error))) from None


def _follow_artifacts(database: Path) -> None:
    """Correct the records of a database that was moved or copied together with its artifacts.

    MLflow writes absolute paths of artifacts. Ours lie in a folder beside the database, so the records are right again
    once they name that folder. Without it there, as for a database that was copied alone, they stay as they are.

    Raises:
        OSError: the database cannot be written.
    """
    beside = database.absolute().parent / ARTIFACTS
    for location in private.artifact_locations(database):
        parts = urllib.parse.urlsplit(location)
        former = Path(urllib.parse.unquote(parts.path))
        if parts.scheme != "file" or former.name != ARTIFACTS or former == beside:
            continue
        if former.exists() and (not beside.exists() or former.samefile(beside)):
            continue
        private.move_artifacts(database, location, beside.as_uri())


def artifacts_of(uri: str) -> str | None:
    """Where an experiment of a store keeps its artifacts: beside a database; None: a server has its own place."""
    path = sqlite_file(uri)
    return (path.absolute().parent / ARTIFACTS).as_uri() if path else None


@contextlib.contextmanager
def plain_errors(uri: str, kind: type[ValueError]) -> Iterator[None]:
    """Raise errors of MLflow, its database, its artifact store and the network as `kind`, on one line, no password.

    Errors that are ours already, a ValueError, stay as they are.
    """
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise kind(reason(uri, str(error))) from None
    except (SQLAlchemyError, CommandError, sqlite3.Error) as error:  # while MLflow opens the database
        raise kind(reason(uri, str(getattr(error, "orig", None) or error))) from None
    except ValueError:
        raise
    except ImportError as error:
        raise kind(
            f"{redact(uri)}: a package that its artifact store needs is not installed here ({one_line(error, 100)}); "
            "install it, such as boto3 for s3://, or start the server with --serve-artifacts"
        ) from None
    except Exception as error:  # the libraries of artifact stores, such as boto3, have classes of their own
        why = reason(uri, f"{type(error).__name__}: {error}")
        raise kind(f"{why}; give its artifact store's credentials in the environment, if it lacks them") from None


def reason(uri: str, error: str) -> str:
    """A store's error on one line, without a password; of a database on this machine, with what helps."""
    path = sqlite_file(uri)
    if path and re.search(r"disk is full|[Nn]o space left", error):
        why = f"no space left on the disk of the database ({files.free(path)}); free some space"
    elif path and re.search(r"not a database|malformed|disk I/O error", error):
        why = f"the database is damaged ({one_line(error, 100)}); copy it back"
    elif path and "readonly database" in error:
        why = "the database cannot be written"
    else:
        return f"{redact(uri)}: {one_line(error)}"
    return f"{redact(uri)}: {why}, or give another store with tracking.uri or MLFLOW_TRACKING_URI"


def ui_command(uri: str) -> str:
    """The command that shows the store's pages: it opens a server's, or serves those of a database on this machine."""
    if urllib.parse.urlsplit(uri).scheme in ("http", "https"):
        return f"python -m webbrowser {shlex.quote(redact(uri).replace('***@', ''))}"
    store = shlex.quote(uri) if redact(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    return f"{mlflow_program()} server --backend-store-uri {store} --host 127.0.0.1 --port 5000"


def mlflow_program() -> str:
    """MLflow's own program as a shell finds it: beside this Python, which need not be on the path."""
    beside = Path(sys.executable).with_name("mlflow")
    program = str(beside) if beside.exists() else "mlflow"
    with contextlib.suppress(ValueError):
        program = str(beside.relative_to(Path.cwd())) if beside.exists() else program
    return program
