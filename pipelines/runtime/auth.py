"""Who may talk to a Ray cluster: whether an address is this machine's, and where Ray's token is.

A cluster that answers beyond loopback runs whatever anybody sends it, unless it asks for Ray's token.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.parse
from pathlib import Path


class AuthError(ValueError):
    """A cluster that must not, or cannot, be used like this. One line with the remedy."""


def token() -> str | None:
    """Ray's token, looked for where Ray itself looks: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        AuthError: RAY_AUTH_TOKEN_PATH names a file that cannot be read or is empty.
    """
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        text = _read(Path(path))
        if not text:
            raise AuthError(f"RAY_AUTH_TOKEN_PATH={path}: no token can be read there; give the file that holds it")
        return text
    return _read(Path.home() / ".ray" / "auth_token") or None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def host_of(address: str) -> str:
    """The host of "host:port", "[::1]:port", "ray://host:port" or "http://host:port"."""
    return urllib.parse.urlsplit(address if "://" in address else f"//{address}").hostname or ""


def loopback(host: str) -> bool:
    """Whether a host is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def this_machine(host: str) -> bool:
    """Whether a host is one of this machine's own addresses: only then can a port be opened on it."""
    if loopback(host):
        return True
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        with socket.socket(family) as trial:
            trial.bind((host, 0))
    except OSError:
        return False
    return True


def offer_token() -> None:
    """Show Ray's token, where there is one, to the cluster at RAY_ADDRESS. To be called before `ray` is imported.

    Ray shows it only with RAY_AUTH_MODE=token, which it reads on import; a cluster that asks for none does not mind.
    """
    if os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ and token():
        os.environ["RAY_AUTH_MODE"] = "token"


def check_join(address: str) -> None:
    """Before this process joins the cluster at RAY_ADDRESS.

    Raises:
        AuthError: the cluster is on other machines, and Ray's token authentication is off.
    """
    host = host_of(address)
    secured = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if address in ("auto", "local") or secured or this_machine(host):
        return
    raise AuthError(
        f"RAY_ADDRESS={address}: a cluster beyond this machine needs Ray's token; set RAY_AUTH_MODE=token here and on "
        "every node, with the same token in ~/.ray/auth_token (or RAY_AUTH_TOKEN_PATH); "
        "`ray get-auth-token --generate` makes one"
    )
