"""A run's folder: its name, which configuration and data it belongs to, and what is noted in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines.config import Config, ConfigError
from pipelines.runs import checkpoint
from pipelines.runs import storage as remote
from pipelines.runtime import files

RUN = "run.json"  # its MLflow run and data


def named(config: Config) -> Config:
    """The configuration with a run name."""
    if config.train.name:
        check_name(config.train.name, "train.name")
        return config
    return config.replace({"train.name": f"{config.recipe or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"})


def check_name(name: str, asked_by: str) -> None:
    """A name becomes a folder, and never one elsewhere.

    Raises:
        ConfigError: it has folders in it, or is hidden.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ConfigError(f"{asked_by}={name!r}: a plain name, without folders")


def storage_of(config: Config, *, what: str) -> Path:
    """The folder of all runs, for what writes to folders only.

    Raises:
        ConfigError: `train.storage` is a URI.
    """
    if remote.is_uri(config.train.storage):
        raise ConfigError(
            f"train.storage={config.train.storage}: {what} writes to folders only; mount it on every node, and give "
            "that path"
        )
    return Path(config.train.storage).expanduser().absolute()


def place_of(config: Config) -> str:
    """Where a run keeps its checkpoints, configuration and results: a path, or a URI.

    Raises:
        ConfigError: a URI with a secret in it, or of an unknown kind.
    """
    storage = config.train.storage
    if remote.is_uri(storage):
        return remote.joined(remote.check(storage, asked_by="train.storage"), config.train.name)
    return str(Path(storage).expanduser().absolute() / config.train.name)


def folder_of(config: Config) -> Path:
    """The same as a folder on this disk: a copy where it is a URI (`remote`). Raises ConfigError as `place_of`."""
    place = place_of(config)
    return remote.copy_of(place) if remote.is_uri(place) else Path(place)


def open_folder(config: Config, fingerprint: str) -> Path:
    """Make the run's folder, or check that it is this run's: same configuration, same data.

    Raises:
        ConfigError: when the name belongs to another run.
        RemoteError: its URI cannot be read or written.
    """
    run_dir = remote.refresh(folder_of(config))
    saved = run_dir / checkpoint.CONFIG
    checkpoint.sweep(run_dir)
    if saved.exists() and checkpoint.latest(run_dir) is None and configs.load(saved) != config:
        (run_dir / RUN).unlink(missing_ok=True)  # it never came to a checkpoint: nothing to go on with, start anew
    elif saved.exists():
        _same(configs.load(saved), config)
        known = read_run(run_dir).get("fingerprint", fingerprint)
        if known != fingerprint:
            raise ConfigError(
                f"train.name={config.train.name}: that run was trained on other data ({known}, now {fingerprint}); "
                "choose another train.name"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    files.write_text(saved, config.dumps())
    write_run(run_dir, fingerprint=fingerprint)
    remote.push(run_dir, checkpoint.CONFIG)
    return run_dir


def read_run(run_dir: Path) -> dict[str, Any]:
    """What is known of a run beside its configuration."""
    path = run_dir / RUN
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_run(run_dir: Path, **facts: Any) -> None:
    """Add to what is known of a run."""
    text = json.dumps({**read_run(run_dir), **facts}, indent=2)
    files.write_text(run_dir / RUN, text)
    remote.push(run_dir, RUN)


def _same(saved: Config, config: Config) -> None:
    """A run is resumed only with the configuration that makes its weights; anything else may change."""
    for key, (before, now) in saved.differences(config, "results", "run").items():
        raise ConfigError(
            f"{key}={now}: the run {config.train.name} was started with {before}; choose another train.name, or leave "
            "the key as it was to resume that run"
        )
