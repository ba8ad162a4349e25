"""A configuration that a process in another folder understands: absolute paths, the tracking URI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines import run_folder, stores
from pipelines.config import Config


def spelled_out(config: Config, *, what: str) -> Config:
    """The same run, told to another process, whose files anybody may read.

    Args:
        what: that writes the configuration down, for the message.

    Raises:
        ConfigError, TrackingError: `train.storage` is a URI; a password in the tracking URI.
    """
    storage = run_folder.storage_of(config, what=what)
    uri = stores.uri_of(config)
    if stores.redact(uri) != uri:
        raise stores.TrackingError(
            f"{stores.redact(uri)}: {what} writes its tracking URI into files; give the user and the password in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    changes: dict[str, Any] = {"tracking.uri": uri, "train.storage": str(storage)}
    for key in ("data.root", *configs.WEIGHTS):
        value = config.flat()[key]
        if value and Path(value).exists():
            changes[key] = str(Path(value).expanduser().absolute())
    return config.replace(changes)
