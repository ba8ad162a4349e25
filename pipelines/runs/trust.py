"""Whether a configuration that was found in a folder or a store may name code to import.

Such a configuration was perhaps written by a stranger. What it says of numbers, names and places is used; a
`module:callable` in it is imported only if the user named it (key=value on the command line), trusts the folder
(`--trust`, trust=True), or made the folder here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipelines.config import Config, ConfigError, keys_with_code
from pipelines.networks.segmenters import is_imported
from pipelines.runtime import provenance
from pipelines.text import one_line


class TrustError(ConfigError):
    """A stranger's configuration or sweep would run code. One line with the remedy."""


def check_config(
    config: Config, source: str | Path, *, given: Collection[str] = (), trust: bool = False, option: str = "--trust"
) -> None:
    """Make sure that nothing is imported on the word of a stored configuration.

    Args:
        config: what was read, with the user's changes.
        source: the folder or file it was read from, or the name of a registered model.
        given: the dotted keys that the user set.
        trust: the user trusts the source.
        option: how the user says so, for the message.

    Raises:
        TrustError: a key that the user did not set names code; tells key, value and remedy.
    """
    if trust or is_made_here(Path(source)):
        return
    for key in keys_with_code():
        value = config.flat()[key]
        if value and key not in given and is_imported(value):
            raise TrustError(
                f"{key}={one_line(value)}: {source} asks to import and run this; if you know the code, name it with "
                f"{key}={one_line(value)} or trust the folder with {option}; otherwise leave it out with {key}=null"
            )


def is_made_here(place: Path) -> bool:
    """Whether a run's folder, one of its checkpoints or a file of it was made by this user on this machine."""
    return any(provenance.made_here(folder) for folder in (place, *list(place.absolute().parents)[:2]))
