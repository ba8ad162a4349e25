"""Authentication of Ray clusters: where Ray's token is, and when an address needs it.

A cluster that can be reached from other machines runs whatever anybody sends it, unless it requires Ray's token.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.parse
from pathlib import Path


class AuthError(ValueError):
    """A cluster cannot be joined, or must not be without Ray's token. One line with the remedy."""


def token() -> str | None:
    """Ray's token, from where Ray itself reads it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

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
    """Whether a host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def this_machine(host: str) -> bool:
    """Whether a host is one of this machine's own addresses, which is tried by opening a port on it."""
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
    """Let Ray send its token, if there is one, to the cluster at RAY_ADDRESS. To be called before `ray` is imported.

    Ray sends it only with RAY_AUTH_MODE=token, which it reads on import; a cluster that requires none ignores it.
    """
    if os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ and token():
        os.environ["RAY_AUTH_MODE"] = "token"


def check_join(address: str) -> None:
    """Make sure that this process may join the cluster at this address (RAY_ADDRESS).

    Raises:
        AuthError: it is on other machines, and Ray's token authentication is off.
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
