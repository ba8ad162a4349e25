"""A verb's words, checked and made ready to travel, before anything is sent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.config import Config

_STAYS = ("submit", "jobs", "cluster", "demo")  # they start or ask clusters themselves
# Keys that hold a path; in a job, a relative one would mean the job's own temporary folder.
_PATHS = ("data.root", "train.storage", "loss.features_weights", "evaluate.segmenter_weights")


def prepared(verb: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The words as they are sent, and the files that must travel along.

    Raises:
        ConfigError: a wrong key or value, or a relative path.
        SystemExit: words that no verb understands, as argparse says it.
    """
    from cluster.cli import parser
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
    if not isinstance(args.config, Path):
        return list(verb), []
    sent = [args.config.name if word == str(args.config) else word for word in verb]
    return [word.replace(f"--config={args.config}", f"--config={args.config.name}") for word in sent], [args.config]


def configured(args: argparse.Namespace) -> Config | None:
    """The configuration that a verb's words ask for; none for a verb without one, or that only lists things.

    Raises:
        ConfigError: a wrong key or value.
    """
    name, file = getattr(args, "recipe", None), getattr(args, "config", None)
    if not name and not file:
        return None
    from pipelines import config as configs
    from pipelines.recipes import recipe

    base = configs.load(file) if file else recipe(str(name))
    return base.replace(configs.parse(args.overrides))


def _check_paths(config: Config) -> None:
    from pipelines.config import ConfigError

    flat = config.flat()
    if not flat["data.root"]:
        raise ConfigError("data.root: give the folder with the photographs, as the cluster's nodes see it")
    for key in _PATHS:
        value = flat[key]
        if value and value != "random" and "://" not in value and not Path(value).is_absolute():
            raise ConfigError(
                f"{key}={value}: relative paths mean nothing on a cluster; give one that every node sees, "
                f"such as {key}=/storage/{Path(value).name}"
            )
    uri = flat["tracking.uri"]
    if uri.startswith("sqlite") and not uri.partition(":///")[2].startswith("/"):
        raise ConfigError(f"tracking.uri={uri}: relative paths mean nothing on a cluster; give sqlite:////storage/...")
