"""Authentication of Ray clusters: where Ray's token is, and when an address needs it.

A cluster that can be reached from other machines runs whatever anybody sends it, unless it requires Ray's token.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import threading
import urllib.parse
from contextlib import suppress
from pathlib import Path

from pipelines.runtime import private
from pipelines.secrets import problem

_SECURED = ("token", "k8s")  # values of RAY_AUTH_MODE; any other, and none, is without authentication


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


def make_token() -> str:
    """Ray's token of this user; made if there is none, readable by its owner alone. Ray's own are readable by all.

    Raises:
        AuthError: as `token`.
    """
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    if held := token():
        return held
    made = secrets.token_hex(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made)
        with suppress(FileExistsError):  # another process was quicker; its token counts
            os.link(temporary, path)
        temporary.unlink()
    except OSError:  # a home folder that cannot be written: for this process and those it starts
        os.environ["RAY_AUTH_TOKEN"] = made
    return token() or made


def secured() -> bool:
    """Whether this process is set to use Ray's token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() in _SECURED


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


def listens_beyond(address: str) -> bool:
    """Whether a cluster at a loopback address can be reached from other machines too: tried at this machine's own."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        trial.connect(("198.51.100.1", 9))  # sends nothing: it finds the address that faces other machines
        host, port = trial.getsockname()[0], _port(address)
        if port and not loopback(host):
            socket.create_connection((host, port), timeout=2).close()
            return True
    return False


def _port(address: str) -> int | None:
    return urllib.parse.urlsplit(address if "://" in address else f"//{address}").port


def offer_token() -> None:
    """Let Ray send its token, if there is one, to the cluster at RAY_ADDRESS. To be called before `ray` is imported.

    Ray sends it only with RAY_AUTH_MODE=token, which it reads on import; a cluster that requires none ignores it.
    """
    if os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ and token():
        os.environ["RAY_AUTH_MODE"] = "token"


def check_cluster() -> None:
    """Make sure that the cluster at RAY_ADDRESS, if there is one, answers and may be joined.

    Raises:
        AuthError: it does not answer, or is not to be joined like this.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address and address not in ("auto", "local"):  # what auto means is known to Ray alone
        check_address(address)


def check_address(address: str) -> None:
    """Make sure that the cluster at this address (RAY_ADDRESS) answers, may be joined, and asks for Ray's token.

    Raises:
        AuthError: as `check_join`, `check_answers` and `check_asks_for_token`.
    """
    check_join(address)
    check_answers(address)
    check_asks_for_token(address)


def check_join(address: str) -> None:
    """Make sure that this process may join the cluster at this address (RAY_ADDRESS).

    Raises:
        AuthError: it can be reached from other machines, and Ray's token authentication is off.
    """
    if line := problem(address, asked_by="RAY_ADDRESS"):
        raise AuthError(line)
    if secured() or not _beyond(address):
        return
    raise AuthError(
        f"RAY_ADDRESS={address}: a cluster that listens beyond loopback needs Ray's token, or it runs what anybody "
        "sends it; set RAY_AUTH_MODE=token here and on every node, with the same token in ~/.ray/auth_token (or "
        "RAY_AUTH_TOKEN_PATH); `ray get-auth-token --generate` makes one"
    )


def check_answers(address: str, *, timeout: float = 4.0) -> None:
    """Make sure that a Ray cluster answers at host:port, within seconds; Ray itself would try for minutes.

    Raises:
        AuthError: nothing listens there, or something else than Ray.
    """
    found: list[str] = []
    # In a thread, since looking up a name may take longer and cannot be interrupted.
    asking = threading.Thread(target=lambda: found.append(trouble(address, timeout)), daemon=True)
    asking.start()
    asking.join(2 * timeout)
    if reason := found[0] if found else "no answer":
        raise AuthError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason}); start it, or correct RAY_ADDRESS, or "
            "unset it to use Ray on this machine alone"
        )


def check_asks_for_token(address: str) -> None:
    """Make sure that a cluster which can be reached from other machines asks for Ray's token: one that does not ignores
    ours, and runs what anybody sends it.

    Raises:
        AuthError: it asks for none.
    """
    if _beyond(address) and private.asks_for_token(address) is False:
        raise AuthError(
            f"RAY_ADDRESS={address}: this cluster runs what anybody sends it; start its nodes with RAY_AUTH_MODE=token "
            "and Ray's token, or let it listen on loopback alone"
        )


def _beyond(address: str) -> bool:
    return not loopback(host_of(address)) or listens_beyond(address)


def trouble(address: str, timeout: float) -> str:
    """Why no Ray cluster answers at host:port, or ""."""
    try:
        host, port = host_of(address), _port(address)
    except ValueError as error:
        return str(error)
    if not host or not port:
        return "give host:port, such as head:6379"
    try:
        with socket.create_connection((host, port), timeout) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                # HTTP/2, on which gRPC stands: after its preface both sides send a frame of settings (type 4).
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
                if connection.recv(9)[3:4] != b"\x04":
                    return "something else listens there"
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return ""
