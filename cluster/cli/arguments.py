"""A verb's words, checked and made ready to travel, before anything is sent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli import table

if TYPE_CHECKING:
    from pipelines.config import Config

_STAYS = ("submit", "jobs", "cluster", "demo")  # they start or ask clusters themselves


def prepared(verb: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The words as they are sent, and the files that must travel along.

    Raises:
        ConfigError: a wrong key or value, or a relative path.
        SystemExit: words that no verb understands, as argparse says it.
    """
    from cluster.cli.main import parser
    from pipelines.config import ConfigError

    if not verb:
        raise ConfigError("submit: give a verb, such as `d2sm submit -- train --recipe NAME data.root=/data`")
    if verb[0] in _STAYS:
        raise ConfigError(f"submit: `d2sm {verb[0]}` runs here, not on a cluster; send train, evaluate or another verb")
    args = parser().parse_args(list(verb))
    config = configured(args)
    if config is None:
        return list(verb), []
    _check_paths(config)
    words, carried = list(verb), []
    for option in ("config", "space"):
        given = getattr(args, option, None)
        if given and Path(given).is_file():
            name = Path(given).name
            words = [
                name if word == str(given) else word.replace(f"--{option}={given}", f"--{option}={name}")
                for word in words
            ]
            carried.append(Path(given))
    return words, carried


def configured(args: argparse.Namespace) -> Config | None:
    """The configuration that a verb's words ask for, of several the first; none for a verb without one.

    Raises:
        ConfigError: a wrong key or value.
    """
    if getattr(args, "rows", None):
        return table.rows(args)[0]
    name, file = getattr(args, "recipe", None), getattr(args, "config", None)
    if not name and not file:
        return None
    from pipelines import config as configs
    from pipelines.recipes import recipe

    base = configs.load(file) if file else recipe(str(name))
    return base.replace(configs.parse(args.overrides))


def training(args: argparse.Namespace) -> Config:
    """The configuration that a verb which trains is asked for.

    Raises:
        ConfigError: a wrong key or value, no recipe, no data.
    """
    from pipelines.config import ConfigError

    config = configured(args)
    if config is None:
        raise ConfigError("train: give --recipe NAME or --config FILE (--recipes lists the recipes)")
    if not config.data.root:
        raise ConfigError("data.root: give the folder with the photographs, such as data.root=/data/cityscapes")
    return config


def _check_paths(config: Config) -> None:
    """In a job, a relative path would mean the job's own temporary folder."""
    from pipelines.config import WEIGHTS, ConfigError

    flat = config.flat()
    if not flat["data.root"]:
        raise ConfigError("data.root: give the folder with the photographs, as the cluster's nodes see it")
    for key in ("data.root", "train.storage", *WEIGHTS):
        value = flat[key]
        if value and value != "random" and "://" not in value and not Path(value).is_absolute():
            raise ConfigError(
                f"{key}={value}: relative paths mean nothing on a cluster; give one that every node sees, "
                f"such as {key}=/storage/{Path(value).name}"
            )
    uri = flat["tracking.uri"]
    if uri.startswith("sqlite") and not uri.partition(":///")[2].startswith("/"):
        raise ConfigError(f"tracking.uri={uri}: relative paths mean nothing on a cluster; give sqlite:////storage/...")
