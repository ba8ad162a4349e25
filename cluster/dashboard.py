"""The dashboard of a Ray cluster, where jobs are submitted: its address, Ray's token, errors as one line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from cluster import constants, nodes
from pipelines import secrets
from pipelines.runtime import auth, private
from pipelines.runtime.auth import AuthError
from pipelines.text import one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_VARIABLE = "RAY_API_SERVER_ADDRESS"
_OVERRIDES = (_VARIABLE, "RAY_ADDRESS")  # for Ray, these take precedence over the address it is given


class ClusterError(ValueError):
    """The cluster does not answer, refuses, or has no such job. One line."""


def address_of(given: str | None = None) -> str:
    """The dashboard's http address: the given one, else RAY_API_SERVER_ADDRESS, `d2sm cluster up`'s, Ray's default."""
    address, asked_by = given or os.environ.get(_VARIABLE), "--address" if given else _VARIABLE
    if not address:
        state = nodes.read()
        address = state.dashboard if state else f"http://{constants.LOOPBACK}:{constants.DASHBOARD_PORT}"
        asked_by = f"{nodes.path()}: dashboard"
    if line := secrets.problem(address, asked_by=asked_by):
        raise ClusterError(line)
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{asked_by}{' ' if given else '='}{address}: give the dashboard's address, such as http://head:8265"
        )
    return address.rstrip("/")


def check(address: str, *, timeout: float = 10) -> None:
    """Check that a cluster answers and, if it is beyond loopback, that it asks for a token and we have one.

    Raises:
        ClusterError: nothing answers.
        AuthError: no token here, or the cluster does not ask for one.
    """
    beyond = not auth.loopback(auth.host_of(address))
    token = auth.token()
    if beyond and os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        raise AuthError(
            f"{address}: RAY_AUTH_MODE=disabled, but a cluster beyond loopback needs Ray's token; unset it, or set "
            "RAY_AUTH_MODE=token"
        )
    if beyond and not token:
        raise AuthError(
            f"{address}: a cluster beyond loopback needs Ray's token; put the cluster's into ~/.ray/auth_token (or "
            "RAY_AUTH_TOKEN_PATH), or reach the head through a tunnel: ssh -L 8265:localhost:8265 HEAD"
        )
    status = _status(f"{address}/api/version", timeout)
    if status == 200 and beyond:
        raise AuthError(
            f"{address}: this cluster runs what anybody sends it; start its nodes with RAY_AUTH_MODE=token and Ray's "
            "token, or let it listen on loopback alone"
        )
    if status in (401, 403) and not token:
        raise AuthError(
            f"{address}: the cluster asks for Ray's token; put it into ~/.ray/auth_token (or RAY_AUTH_TOKEN_PATH)"
        )


def _status(url: str, timeout: float) -> int:
    """The HTTP status of a request without a token."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, HTTPException) as error:
        raise _no_answer(url.removesuffix("/api/version"), getattr(error, "reason", None) or error) from None


def _no_answer(address: str, reason: object) -> ClusterError:
    why = one_line(reason, 200)
    return ClusterError(
        f"{address}: no Ray cluster answers ({why}); give its address with --address, or start one here: "
        "d2sm cluster up"
    )


def ask(address: str, path: str, *, timeout: float = 10) -> Any:
    """The JSON that the dashboard returns for a path."""
    request = urllib.request.Request(f"{address}{path}", headers=_headers())
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except (OSError, ValueError, HTTPException) as error:
        raise _no_answer(address, getattr(error, "reason", None) or error) from None


def client(address: str) -> JobSubmissionClient:
    """Ray's client for jobs, for this address and with the token."""
    with plain_errors(address):
        from ray.job_submission import JobSubmissionClient

        for name in private.JOB_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        kept = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
        try:
            return JobSubmissionClient(address, headers=_headers())
        finally:
            os.environ.update(kept)


def _headers() -> dict[str, str]:
    token = auth.token()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextlib.contextmanager
def plain_errors(address: str) -> Iterator[None]:
    """Turn errors of Ray's client and of the network into one line."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError:
        raise AuthError(
            f"{address}: the cluster refuses this token; put the cluster's own into ~/.ray/auth_token (or "
            "RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN)"
        ) from None
    except (ConnectionError, RequestException) as error:
        raise _no_answer(address, error) from None
    except RuntimeError as error:  # "Request failed with status code ..."
        raise ClusterError(f"{address}: {one_line(error)}") from None
