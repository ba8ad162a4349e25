"""From the words of a command line to a configuration, and to words that mean the same on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cli.parser import parser
from cluster.working_dir import CODE

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.study import Study

_NOT_SENT = ("submit", "jobs", "cluster", "demo")  # verbs that start clusters, or ask them, themselves


def configuration(args: argparse.Namespace) -> Config | None:
    """The configuration that a verb's options ask for, the first where there are several; None for verbs without one.

    Raises:
        ConfigError: a wrong recipe, file, key or value; the file names code to import, and the user does not.
    """
    if getattr(args, "rows", None):
        return table_rows(args)[0]
    if getattr(args, "plan", None):
        return study_runs(args, absolute=False).runs[0].config
    name, file = getattr(args, "recipe", None), getattr(args, "config", None)
    if not name and not file:
        return None
    from pipelines import config as configs
    from pipelines.recipes import recipe

    changes = configs.parse(args.overrides)
    if not file:
        return recipe(str(name)).replace(changes)
    from pipelines.runs.trust import check_config

    config = configs.load(file, given=True).replace(changes)
    check_config(config, file, given=changes, trust=args.trust)
    return config


def given_keys(args: argparse.Namespace) -> set[str]:
    """The configuration keys that were typed, or that the plan of a study sets, for what `configuration` gives."""
    if getattr(args, "rows", None):
        return table_given(args)[0]
    if getattr(args, "plan", None):
        return set(study_runs(args, absolute=False).runs[0].given)
    return {word.partition("=")[0] for word in getattr(args, "overrides", [])}


def training_configuration(args: argparse.Namespace) -> Config:
    """The same for a verb that trains.

    Raises:
        ConfigError: as `configuration`; no recipe, or no data.
    """
    from pipelines.config import ConfigError

    config = configuration(args)
    if config is None:
        raise ConfigError("train: give --recipe NAME or --config FILE (--recipes lists the recipes)")
    if not config.data.root:
        raise ConfigError("data.root: give the folder with the photographs, such as data.root=/data/cityscapes")
    return config


def table_rows(args: argparse.Namespace) -> list[Config]:
    """The rows that `d2sm table` is asked for.

    Raises:
        ConfigError: a wrong recipe, key or value, or no data.
    """
    from pipelines.table import rows_of

    return rows_of(*_table_words(args))


def table_given(args: argparse.Namespace) -> list[set[str]]:
    """For each of these rows, the configuration keys that were typed. Raises ConfigError: as `table_rows`."""
    from pipelines.table import given_of

    return given_of(*_table_words(args))


def _table_words(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The words that name rows, and the keys that all rows change."""
    from pipelines import config as configs

    # argparse counts key=value words that follow --recipes as rows. A row that changes keys has its ":" before its "=".
    rows = [word for word in args.rows if "=" not in word or ":" in word.partition("=")[0]]
    changes = configs.parse([*(word for word in args.rows if word not in rows), *args.overrides])
    if args.data is not None:
        if "data.root" in changes:
            raise configs.ConfigError(
                f"data.root={changes['data.root']}: --data {args.data} says it too; give --data or data.root"
            )
        changes["data.root"] = str(args.data)
    if not changes.get("data.root"):
        raise configs.ConfigError("data.root: give the folder with the photographs, such as --data /data/cityscapes")
    return rows, changes


def is_results(plan: Path) -> bool:
    """Whether `d2sm study` is given the results of a study instead of a plan."""
    return plan.suffix == ".xz"


def study_runs(args: argparse.Namespace, *, absolute: bool = True) -> Study:
    """The runs that `d2sm study` is asked for.

    Args:
        absolute: see `study.read`.

    Raises:
        ConfigError: the file is no plan; a wrong recipe, key or value; no data.
        TrustError: the plan names code to import, and the user does not.
    """
    from pipelines import config as configs
    from pipelines import study
    from pipelines.runs.trust import check_config

    changes = configs.parse(args.overrides)
    found = study.read(args.plan, name=args.name, changes=changes, absolute=absolute)
    for one in (*found.starts.values(), *found.runs):
        check_config(one.config, args.plan, given=changes, trust=args.trust)
    return found


def for_cluster(verb: Sequence[str]) -> tuple[list[str], list[Path]]:
    """A verb's words as a job runs them, and the files that have to be sent with it.

    Raises:
        ConfigError: a wrong key or value, or a relative path, which would mean the job's own folder.
        SystemExit: words that the command line does not understand, as argparse says it.
    """
    from pipelines.config import ConfigError

    if not verb:
        raise ConfigError("submit: give a verb, such as `d2sm submit -- train --recipe NAME data.root=/data`")
    if verb[0] in _NOT_SENT:
        raise ConfigError(f"submit: `d2sm {verb[0]}` runs here, not on a cluster; send train, evaluate or another verb")
    args = parser().parse_args(list(verb))
    if getattr(args, "plan", None) and is_results(args.plan):
        raise ConfigError(
            f"submit: {args.plan} holds the results of a study, which `d2sm study` prints here; send a plan"
        )
    config = configuration(args)
    if config is None:
        return list(verb), []
    configs = _configurations(args, config)
    for each in configs:
        _check_paths(each)
    words, files = list(verb), []
    if (getattr(args, "config", None) or getattr(args, "plan", None)) and not args.trust:
        from pipelines.runs.trust import names_code

        if any(map(names_code, configs)):
            words.insert(1, "--trust")  # it was found trustworthy here, where it can be known who made the file
    for option in ("config", "space", "plan"):
        given = getattr(args, option, None)
        if given and Path(given).is_file():
            words = [_in_the_job(word, option, Path(given)) for word in words]
            files.append(Path(given))
    init = Path(config.train.init)
    if getattr(args, "plan", None):
        for each in configs:
            if each.train.init and not Path(each.train.init).is_absolute() and Path(each.train.init).is_file():
                raise ConfigError(
                    f"train.init={each.train.init}: a relative path means nothing on a cluster, and no file of weights "
                    "is sent with a study; give an absolute path that every node sees, or a registered model"
                )
    elif config.train.init and init.is_file() and not init.is_absolute():
        words = [word for word in words if not word.startswith("train.init=")] + [f"train.init={init.name}"]
        files.append(init)
    code = dict.fromkeys(file for each in configs for file in _code(each))  # each file once
    files += [file for file in code if file not in files]
    return words, files


def _in_the_job(word: str, option: str, given: Path) -> str:
    """A word of the command line in the job, in whose own folder the file of an option lies."""
    head, value = (f"--{option}=", word.removeprefix(f"--{option}=")) if word.startswith(f"--{option}=") else ("", word)
    return head + given.name if Path(value) == given else word


def _configurations(args: argparse.Namespace, config: Config) -> list[Config]:
    if getattr(args, "rows", None):
        return table_rows(args)
    if getattr(args, "plan", None):
        planned = study_runs(args, absolute=False)
        return [one.config for one in (*planned.starts.values(), *planned.runs)]
    return [config]


def _code(config: Config) -> list[Path]:
    """The files and packages of the user's own that a configuration names code in; they are sent with the job."""
    from pipelines.callables import own_source
    from pipelines.runs.trust import named_code

    found = [own_source(name) for _, name in named_code(config)]
    return [path for path in dict.fromkeys(found) if path is not None and path.name not in CODE]


def _check_paths(config: Config) -> None:
    from pipelines.config import ConfigError, keys_with

    flat = config.flat()
    if not flat["data.root"]:
        raise ConfigError("data.root: give the folder with the photographs, as the cluster's nodes see it")
    for key, value in ((place, value) for place in keys_with("place") for value in config.names(place)):
        if value != "random" and "://" not in value and not Path(value).is_absolute():
            raise ConfigError(
                f"{key}={value}: a relative path means nothing on a cluster; give a path that every node sees, "
                f"such as {key}=/storage/{Path(value).name}"
            )
    init = flat["train.init"]
    is_path = init.startswith((".", "~")) or ("/" in init and not init.startswith(("/", "models:")))
    if is_path and "://" not in init and not Path(init).is_file():
        raise ConfigError(
            f"train.init={init}: a relative path means nothing on a cluster, unless it is a file here, which is sent "
            "along; give an absolute path that every node sees, or a registered model"
        )
    labels = flat["data.labels"]
    if labels.endswith((".yaml", ".yml")) and not Path(labels).is_absolute():
        raise ConfigError(
            f"data.labels={labels}: a relative path means nothing on a cluster; give a path that every node sees, such "
            f"as data.labels=/storage/{Path(labels).name}"
        )
    uri = flat["tracking.uri"]
    if uri.startswith("sqlite") and not uri.partition(":///")[2].startswith("/"):
        raise ConfigError(
            f"tracking.uri={uri}: a relative path means nothing on a cluster; give an absolute one, sqlite:////storage/..."
        )
