"""Whether a configuration that was found in a folder or a store may name code to import.

Such a configuration was perhaps written by a stranger. What it says of numbers, names and places is used. A
`module:callable` in it is imported, and an MLflow server in it is sent the user's password or token, only if the user
named it (key=value on the command line), trusts the folder (`--trust`, trust=True), or made the folder here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from d2sm.chain import parse
from pipelines import parsing
from pipelines.callables import is_imported
from pipelines.config import Config, ConfigError, keys, keys_with_code
from pipelines.networks.phi_names import parse as parse_phi
from pipelines.runs.names import INFO
from pipelines.runtime import provenance

_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")


class TrustError(ConfigError):
    """A stranger's configuration or sweep would run code. One line with the remedy."""


def check_config(
    config: Config, source: str | Path, *, given: Collection[str] | None = (), trust: bool = False, how: str = "--trust"
) -> None:
    """Make sure that nothing is imported, and no server sent a password, on the word of a stored configuration.

    Args:
        config: what was read, with the user's changes.
        source: the folder or file that it was read from.
        given: the dotted keys that the user set; None: there is no way to set one.
        trust: the user trusts the source.
        how: to say so, for the message.

    Raises:
        TrustError: a key that the user did not set names code or a server; tells key, value and remedy.
    """
    if trust or is_made_here(Path(source)):
        return
    check_servers(config, source, given=given, how=how)
    for key in keys_with_code():
        value = config.flat()[key]
        if key not in (given or ()) and _imports(key, value):
            shown = value if isinstance(value, str) else f"[{', '.join(value)}]"
            name_it = f"name it yourself, {key}={shown}, or " if given is not None else ""
            may_be_left_out = key != "model.name"
            nothing = "" if keys()[key].annotation is str else "[]" if isinstance(value, list) else "null"
            leave_it = f"; {key}={nothing} leaves it out" if given is not None and may_be_left_out else ""
            raise TrustError(f"{_refused(key, shown, source)}{name_it}trust the folder with {how}{leave_it}")


def check_backbone(config: Config, source: str | Path, *, named: str = "") -> None:
    """Make sure that a stored model's backbone is not imported on the word of its own configuration.

    Args:
        config: the model's.
        source: the folder that it was read from.
        named: the backbone that a configuration of the user's names, and which may be imported therefore.

    Raises:
        TrustError: the backbone is a module:callable that the user did not name, nor made the folder.
    """
    name = config.model.name
    if is_imported(name) and name != named and not is_made_here(Path(source)):
        raise TrustError(f"{_refused('model.name', name, source)}trust it with --trust, in Python with trust=True")


def _refused(key: str, value: str, source: str | Path) -> str:
    return f"{key}={value}: {source} asks to import and run this, and was not made here by you; if you know the code, "


def check_servers(
    config: Config, source: str | Path, *, given: Collection[str] | None = (), trust: bool = False, how: str = "--trust"
) -> None:
    """Make sure that MLflow's password or token is sent to no server that only a stored file names.

    Args:
        config, source, given, trust, how: see `check_config`.

    Raises:
        TrustError: a server that the user did not name would be sent it.
    """
    source = Path(source)
    sent = next((name for name in _CREDENTIALS if os.environ.get(name)), None)
    if sent is None or trust or is_made_here(source):
        return
    known = {os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")}
    if "tracking.uri" in (given or ()):
        known.add(config.tracking.uri.rstrip("/"))
    for uri in (config.tracking.uri, *(_recorded_store(folder) for folder in (source, source.parent))):
        if uri.startswith(("http://", "https://")) and uri.rstrip("/") not in known:
            name_it = f"name it yourself, tracking.uri={uri}, or " if given is not None else ""
            raise TrustError(
                f"tracking.uri={uri}: {source} names this server, which would be sent your {sent}, and was not made "
                f"here by you; if you know the server, set MLFLOW_TRACKING_URI to it, {name_it}trust the folder with "
                f"{how}"
            )


def _recorded_store(folder: Path) -> str:
    """The store that a run's run.json names; "" if there is none."""
    file = folder / INFO
    return str(parsing.read_json(file, error=TrustError).get("store", "")) if file.is_file() else ""


def named_code(config: Config) -> list[tuple[str, str]]:
    """Each key that names Python to import, with its module:callable."""
    return code_in(config.flat())


def code_in(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same of some keys with their values."""
    return [(key, name) for key in keys_with_code() if key in values for name in _imports(key, values[key])]


def _imports(key: str, value: Any) -> list[str]:
    """The module:callables in the value of such a key, a text or a list of texts."""
    texts = [str(text) for text in (value if isinstance(value, list) else [value]) if text]
    how = cast("dict[str, Any]", keys()[key].json_schema_extra)["code"]
    if how == "chain":
        return [name for text in texts for name in parse(text).imports]
    if how == "features":
        return [phi.network for phi in map(parse_phi, texts) if phi.imports]
    return list(filter(is_imported, texts))


def is_made_here(place: Path) -> bool:
    """Whether a run's or a sweep's folder, one of its checkpoints or a file of either was made here by this user."""
    place = place.absolute()
    return any(map(provenance.made_here, (place, place.parent, place.parent.parent)[: 3 if place.is_file() else 2]))
