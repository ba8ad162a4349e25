"""From the words of a command line to a configuration, and to words that mean the same on a cluster."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cli.argument_parser import Place
from cluster.cli.parser import parser
from cluster.working_dir import CODE

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.study import Study
    from tuning.space import Space

NOT_SENT = ("submit", "jobs", "cluster", "demo")  # verbs that start clusters, or ask them, themselves
_SENT = ("config", "space", "plan")  # options whose file is sent with the job
_INIT = "train.init="
_TO_FOLDERS = {"tune": "a sweep", "table": "a table", "study": "a study"}
_MEANS_NOTHING = "a relative path means nothing on a cluster"


def configuration(args: argparse.Namespace) -> Config | None:
    """The configuration that --recipe or --config and the typed keys give; None for verbs without these options.

    Raises:
        ConfigError: a wrong recipe, file, key or value; the file names code to import, and the user does not.
    """
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
    """The configuration keys that were typed."""
    return {word.partition("=")[0] for word in getattr(args, "overrides", [])}


def needed(args: argparse.Namespace) -> list[tuple[Config, Collection[str]]]:
    """Every configuration that a verb will train, with the keys that somebody asked for; seeds need the same.

    None for verbs without one.

    Raises:
        ConfigError: as `configuration`, `table_rows` or `study_runs`.
    """
    if getattr(args, "rows", None):
        return list(zip(table_rows(args), table_given(args), strict=True))
    if getattr(args, "plan", None):
        from pipelines.study import distinct

        planned = study_runs(args, absolute=False)
        runs = distinct(planned, [*planned.starts.values(), *planned.runs])
        return [(one.config, one.given) for one in runs.values()]
    config = configuration(args)
    return [] if config is None else [(config, given_keys(args))]


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


def searched_space(args: argparse.Namespace) -> Space:
    """The space that `d2sm tune` searches.

    Raises:
        SpaceError, ConfigError: it is none, or holds a key or a value that no sweep may search.
        TrustError: its file names code to import, and the user does not.
    """
    from pipelines.config import parse
    from tuning import space

    found = space.load(args.space)
    space.check_trusted(found, args.space, given=parse(args.overrides), trust=args.trust)
    space.check(found)
    return found


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


def for_cluster(verb: Sequence[str], *, store: str = "") -> tuple[list[str], list[Path]]:
    """A verb's words as a job runs them, and the files that have to be sent with it.

    Args:
        store: MLFLOW_TRACKING_URI in the job.

    Raises:
        ConfigError: a wrong key or value, or a relative path, which would mean the job's own folder.
        SpaceError: a sweep's space that is none.
        TrustError: a file that is sent names code to import, and the user does not.
        SystemExit: words that the command line does not understand, as argparse says it.
    """
    from pipelines.config import ConfigError

    if not verb:
        raise ConfigError("submit: give a command, such as `d2sm submit -- train --recipe NAME data.root=/data`")
    if verb[0] in NOT_SENT:
        raise ConfigError(
            f"submit: `d2sm {verb[0]}` runs here, not on a cluster; send train, evaluate or another command"
        )
    args = parser().parse_args(list(verb))
    if getattr(args, "plan", None) and is_results(args.plan):
        raise ConfigError(
            f"submit: {args.plan} holds the results of a study, which `d2sm study` prints here; send a plan"
        )
    _check_places(args)
    _check_home(verb, args)
    _check_defaults(verb, args, store)
    configs = _configurations(args)
    if not configs:
        return list(verb), _sent_with_keys(verb, args)
    for each in configs:
        _check_values(each.flat())
    if what := _TO_FOLDERS.get(verb[0]):
        from pipelines.runs.folder import runs_folder

        for each in configs:
            runs_folder(each, what=what)
    values = [each.flat() for each in configs]
    from_files = values if getattr(args, "config", None) or getattr(args, "plan", None) else []
    if verb[0] == "tune":
        points = _check_searched(args, configs[0])
        values, from_files = values + points, from_files + points
    words, files = list(verb), []
    if from_files and not args.trust:
        from pipelines.runs.trust import code_in

        if any(map(code_in, from_files)):
            words.insert(1, "--trust")  # it was found trustworthy here, where it can be known who made the file
    for option in _SENT:
        given = getattr(args, option, None)
        if given and Path(given).is_file():
            words = [_in_the_job(word, option, Path(given)) for word in words]
            files.append(Path(given))
    words, weights = _with_weights(words, args, configs)
    files += weights
    code = dict.fromkeys(file for each in values for file in _code(each))  # each file once
    files += [file for file in code if file not in files]
    return words, files


def check_store(asked_by: str, uri: str) -> None:
    """Refuse the URI of an MLflow store that lies in a job's own folder, which Ray removes.

    Args:
        asked_by: the key, option or variable that gave it.

    Raises:
        ConfigError: a relative path, or a SQLite database at one or in memory.
    """
    from pipelines.config import ConfigError

    of_sqlite = uri.startswith("sqlite")
    path = uri.partition(":///")[2] if of_sqlite else uri
    if (of_sqlite or "://" not in uri) and not path.startswith("/"):
        raise ConfigError(
            f"{asked_by}={uri}: {_MEANS_NOTHING}; give an absolute one, sqlite:////storage/mlflow.db, or the address "
            "of a server"
        )


def _in_the_job(word: str, option: str, given: Path) -> str:
    """A word of the command line in the job, in whose own folder the file of an option lies."""
    head, value = (f"--{option}=", word.removeprefix(f"--{option}=")) if word.startswith(f"--{option}=") else ("", word)
    return head + given.name if Path(value) == given else word


def _configurations(args: argparse.Namespace) -> list[Config]:
    """Every configuration that a verb's options ask for: of each row of a table, of each run of a study."""
    if getattr(args, "rows", None):
        return table_rows(args)
    if getattr(args, "plan", None):
        planned = study_runs(args, absolute=False)
        return [one.config for one in (*planned.starts.values(), *planned.runs)]
    config = configuration(args)
    return [] if config is None else [config]


def _sent_with_keys(verb: Sequence[str], args: argparse.Namespace) -> list[Path]:
    """What is sent with a verb whose configuration is known where it runs, after the keys that were typed are checked.

    Raises:
        ConfigError: a wrong key, or a relative path; `train` without a configuration.
    """
    if verb[0] == "train":
        if not (args.keys or args.recipes or args.layers):
            training_configuration(args)  # says what is missing
        return []
    from pipelines import config as configs

    changes = configs.parse(getattr(args, "overrides", []))
    _check_values(changes)
    return _code(changes)


def _with_weights(
    words: list[str], args: argparse.Namespace, configs: Sequence[Config]
) -> tuple[list[str], list[Path]]:
    """The words with `train.init` as the job sees it, and the file of weights here that it names.

    Args:
        configs: of the verb: one, or that of each row of a table, or of each run of a study.

    Raises:
        ConfigError: a row of a table, or a run of a study, names such a file: only one can be sent, for all rows.
    """
    from pipelines.config import ConfigError

    by_themselves: Sequence[Config] = []
    where = ""
    typed = [word.removeprefix(_INIT) for word in words if word.startswith(_INIT)]
    if rows := getattr(args, "rows", None):
        others = [word for word in args.overrides if not word.startswith(_INIT)]
        alone = argparse.Namespace(
            **{**vars(args), "rows": [row for row in rows if not row.startswith(_INIT)], "overrides": others}
        )
        by_themselves, where = table_rows(alone), "for one row of a table"
    elif getattr(args, "plan", None):
        by_themselves, where = configs, "with a study"
    for each in by_themselves:
        if _is_file_here(each.train.init):
            raise ConfigError(
                f"{_INIT}{each.train.init}: {_MEANS_NOTHING}, and no file of weights is sent {where}; give an absolute "
                "path that every node sees, or a registered model"
            )
    init = typed[-1] if typed else "" if by_themselves else configs[0].train.init
    if not _is_file_here(init):
        return words, []
    sent = f"{_INIT}{Path(init).name}"
    if typed:
        return [sent if word.startswith(_INIT) else word for word in words], [Path(init)]
    at = words.index("--") + 1 if "--" in words else 1  # behind an option with several values it would be one of them
    return [*words[:at], sent, *words[at:]], [Path(init)]


def _is_file_here(init: str) -> bool:
    """Whether a `train.init` is a file of this machine, by a path that means nothing on another."""
    return bool(init) and not Path(init).is_absolute() and Path(init).is_file()


def _code(values: Mapping[str, Any]) -> list[Path]:
    """The files and packages of the user's own that some keys name code in; they are sent with the job."""
    from pipelines.callables import own_source
    from pipelines.runs.trust import code_in

    found = [own_source(name) for _, name in code_in(values)]
    return [path for path in dict.fromkeys(found) if path is not None and path.name not in CODE]


def _check_places(args: argparse.Namespace) -> None:
    """Refuse options and words that say where something is and mean a place of this machine or of the job's folder."""
    from pipelines.config import ConfigError

    for action, place in args.places:
        value = getattr(args, action.dest)
        if action.dest in _SENT or value in (None, ""):
            continue
        option = action.option_strings[-1] if action.option_strings else ""
        for each in map(str, value if isinstance(value, list) else [value]):
            if place == "store":
                check_store(option, each)
            elif not _is_everywhere(each, place):
                remedy = f"{option} /storage/{Path(each).name}".lstrip()
                raise ConfigError(
                    f"{option} {each}: {_MEANS_NOTHING}; give a path that every node sees, such as {remedy}".lstrip()
                )


def _check_home(verb: Sequence[str], args: argparse.Namespace) -> None:
    """Refuse `~` in typed keys and in the files that are sent: it is this user's home here and another in the job.

    Raises:
        ConfigError: names the place; a file is no YAML.
    """
    from pipelines import parsing
    from pipelines.config import ConfigError
    from pipelines.sections import plain_values

    typed = [word for word in verb if "=" in word and not word.startswith("-")]
    # A value, and each of a list: key=~/path, NAME:key=~/path, key=[/path, ~/path].
    found = [word for word in typed if any(part.startswith("~") for part in re.split(r"[=\[\],\s'\"]+", word))]
    for option in _SENT:
        file = getattr(args, option, None)
        if file and Path(file).is_file():
            tree = parsing.read_yaml(Path(file), error=ConfigError, remedy="give a YAML file")
            found += [f"{file}: {text}" for text in plain_values(tree) if str(text).startswith("~")]
    for where in found:
        raise ConfigError(
            f"{where}: ~ is another folder in the job than here; give an absolute path that every node sees, such as "
            "one in /storage"
        )


def _is_everywhere(value: str, place: Place) -> bool:
    """Whether a value means the same on every node."""
    if place == "labels":
        return not value.endswith((".yaml", ".yml")) or Path(value).is_absolute()
    if place == "model" and (value.startswith("models:") or "://" in value):
        return True
    return Path(value).is_absolute()


def _check_defaults(verb: Sequence[str], args: argparse.Namespace, store: str) -> None:
    """Refuse to leave out what by default would be written into the job's own folder, which Ray removes."""
    from pipelines.config import ConfigError

    if verb[0] == "export" and args.target is None:
        raise ConfigError("export: give the file to write as a path that every node sees, such as /storage/model.onnx")
    if verb[0] == "evaluate" and args.out is None and str(args.model).startswith("models:"):
        raise ConfigError(
            f"evaluate {args.model}: the results of a registered model go into the current folder, which is the job's "
            "own and is removed; give --out with a path that every node sees, such as /storage/results.json"
        )
    if verb[0] == "models" and verb[1] != "register" and not args.tracking_uri and not store:
        raise ConfigError(
            f"models {verb[1]}: give the store that every node sees, such as --tracking-uri http://mlflow:5000"
        )


def _check_searched(args: argparse.Namespace, base: Config) -> list[dict[str, Any]]:
    """Refuse what a sweep would refuse on the cluster of its space; gives the values that the space lists, by key."""
    from pipelines.config import ConfigError
    from tuning import space

    searched = searched_space(args)
    listed = list(space.listed(searched))
    for value in listed:
        init = str(value.get(_INIT.removesuffix("=")) or "")
        if _is_file_here(init):
            raise ConfigError(
                f"{_INIT}{init}: {_MEANS_NOTHING}, and no file of weights is sent for points of a sweep; give an "
                "absolute path that every node sees, or a registered model"
            )
    return listed


def _check_values(values: Mapping[str, Any]) -> None:
    """Refuse relative paths in the values of these dotted keys; and no data, where `data.root` is one of them."""
    from pipelines.config import ConfigError, keys_with, names_in

    if not values.get("data.root", True):
        raise ConfigError("data.root: give the folder with the photographs, as the cluster's nodes see it")
    places = [key for key in keys_with("place") if key in values]
    for key, value in ((place, value) for place in places for value in names_in(values[place])):
        if value != "random" and "://" not in value and not Path(value).is_absolute():
            raise ConfigError(
                f"{key}={value}: {_MEANS_NOTHING}; give a path that every node sees, such as "
                f"{key}=/storage/{Path(value).name}"
            )
    init = str(values.get("train.init") or "")
    is_path = init.startswith((".", "~")) or ("/" in init and not init.startswith(("/", "models:")))
    if is_path and "://" not in init and not Path(init).is_file():
        raise ConfigError(
            f"train.init={init}: {_MEANS_NOTHING}, unless it is a file here, which is sent along; give an absolute "
            "path that every node sees, or a registered model"
        )
    labels = str(values.get("data.labels") or "")
    if not _is_everywhere(labels, "labels"):
        raise ConfigError(
            f"data.labels={labels}: {_MEANS_NOTHING}; give a path that every node sees, such as "
            f"data.labels=/storage/{Path(labels).name}"
        )
    if uri := values.get("tracking.uri"):
        check_store("tracking.uri", uri)
