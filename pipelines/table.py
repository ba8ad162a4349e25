"""Train and evaluate every row of a comparison with several seeds, and write the table of what came out.

A row is a recipe, with some of its keys changed if asked. Each of its seeds is a run like any other, in the table's
folder. Finished runs are not repeated; the others run side by side, as many as the cluster holds.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import config as configs
from pipelines.check import check_used
from pipelines.comparison import render
from pipelines.comparison.rows import Row, label, labels, read_rows
from pipelines.config import Config, ConfigError
from pipelines.data import splits
from pipelines.experiment import resolved
from pipelines.parallel import (
    Training,
    check_all,
    check_compared,
    finished,
    is_done,
    record,
    refuse_names,
    run_all,
    send_waiting,
)
from pipelines.recipes import recipe, recipes
from pipelines.runs.folder import RunFolder
from pipelines.runs.names import check_name, shortened
from pipelines.runtime import resources
from pipelines.runtime.progress import Line
from pipelines.text import counted, show
from pipelines.training import tracked


@dataclass(frozen=True)
class Outcome:
    """A table: its rows as far as their runs finished, and its files.

    Attributes:
        failed: why the other runs failed, by run name.
        untracked: what MLflow lacks of runs that finished, by run name, and of the table itself, by its name.
    """

    rows: list[Row]
    failed: Mapping[str, str]
    folder: Path
    page: str
    uri: str
    untracked: Mapping[str, str]

    def text(self) -> str:
        """The table as it is printed."""
        return render.text(self.rows)


def rows_of(wanted: Sequence[str], changes: Mapping[str, Any]) -> list[Config]:
    """The configurations of a table's rows.

    Args:
        wanted: recipes, patterns such as "ffdnet_*_cpu", or recipes with keys behind them, "NAME:loss.weight=1".
        changes: dotted keys that all rows change.

    Raises:
        ConfigError: no such recipe, a wrong key or value, or the same row twice.
    """
    found: dict[str, Config] = {}
    for word in wanted:
        names, own = _parsed(word)
        for name in names:
            keys = {**changes, **own}
            refuse_names(keys, "table")
            config = recipe(name).replace(keys)
            if label(config) in found:
                raise ConfigError(f"{word}: the row {label(config)} is there already; give it once")
            found[label(config)] = config
    return list(found.values())


def given_of(wanted: Sequence[str], changes: Mapping[str, Any]) -> list[set[str]]:
    """For each of `rows_of`, the keys that somebody asked for (see `splits.settled`).

    Raises:
        ConfigError: a wrong key or value.
    """
    parsed = map(_parsed, wanted)
    return [{*changes, *own} for names, own in parsed for _ in names]


def _parsed(word: str) -> tuple[list[str], dict[str, Any]]:
    """The names of recipes that a word of `wanted` stands for, and the keys that it changes."""
    pattern, *own = re.split(r":(?=\w+\.\w+=)", word)  # a value may hold a ":", such as jpeg:10
    return fnmatch.filter(recipes(), pattern) or [pattern], configs.parse(own)


def runs_of(rows: Sequence[Config], *, name: str, seeds: int) -> list[Config]:
    """Every run of a table, the first seed of all rows before the second, so that a stopped table compares all rows.

    Raises:
        ConfigError, TrackingError: fewer than one seed, a name that is not plain, a password in the tracking URI.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: at least 1")
    check_name(name, "name")
    rows = [resolved(row, what="a table") for row in rows]
    return [
        row.replace(
            {
                "train.name": _run_name(row, row.train.seed + number),
                "train.seed": row.train.seed + number,
                "train.storage": str(Path(row.train.storage) / name),
            }
        )
        for number in range(seeds)
        for row in rows
    ]


def table(
    rows: Sequence[Config],
    *,
    name: str,
    seeds: int = 2,
    concurrent: int | None = None,
    quiet: bool = False,
    verbose: bool = False,
    given: Sequence[Collection[str]] = (),
) -> Outcome:
    """Train and evaluate what is missing, and write the table.

    Args:
        rows: from `rows_of`; evaluated in the same way.
        name: of the table's folder in `train.storage`; the same name continues that table.
        seeds: runs of each row, with seeds from its `train.seed` upwards.
        concurrent: at most so many runs at once; None: as many as fit.
        quiet: no progress line.
        verbose: let Ray's own log through.
        given: for each row the keys that somebody asked for (`given_of`); empty: none.

    Raises:
        ConfigError, InUseError, DataError, SegmenterError, ResourceError, TrackingError, RunsError: one line each, at
            the start; RunsError for rows that are not evaluated in the same way. A run that fails later is in the
            outcome instead.
    """
    wanted, folder = _asked(rows, name=name, seeds=seeds, given=given)
    with folder.owned("wait until it has ended, or choose another --name"):
        return _table(wanted, folder, concurrent=concurrent, quiet=quiet, verbose=verbose)


def dry_run(rows: Sequence[Config], *, name: str, seeds: int = 2, given: Sequence[Collection[str]] = ()) -> str:
    """Check everything that `table` checks before its first run, and say what it would train, on one line.

    Args and errors as `table`.
    """
    wanted, folder = _asked(rows, name=name, seeds=seeds, given=given)
    left = _left(wanted, folder)
    steps = {run.train.name: left.needed[label(run)].steps for run in left.missing}
    crops = sum(steps[run.train.name] * run.train.batch_size for run in left.missing)
    return (
        f"table {name}: {counted(len(rows), 'row')}, {counted(len(wanted), 'run')}, {len(wanted) - len(left.missing)} "
        f"done; {counted(sum(steps.values()), 'step')} of {counted(crops, 'crop')} left"
    )


def _asked(
    rows: Sequence[Config], *, name: str, seeds: int, given: Sequence[Collection[str]]
) -> tuple[list[Config], RunFolder]:
    """Every run of a table, settled, and the table's folder."""
    given = given or [()] * len(rows)
    settled = [splits.settled(row, given=own) for row, own in zip(rows, given, strict=True)]
    check_used((row, own) for (row, _), own in zip(settled, given, strict=True))
    for text in dict.fromkeys(text for _, said in settled for text in said):
        show(text)
    wanted = runs_of([row for row, _ in settled], name=name, seeds=seeds)
    return wanted, RunFolder.at(RunFolder.of(wanted[0]).path.parent)


class _Left(NamedTuple):
    """The runs of a table that are still to be trained, and what each needs, by the label of its row."""

    missing: list[Config]
    needed: Mapping[str, Training]


def _left(wanted: Sequence[Config], folder: RunFolder) -> _Left:
    """Check what is missing, and that it will be comparable with what is finished."""
    folder.check_no_run()
    done = [(config, run) for config in wanted if (run := finished(config))]
    missing = [config for config in wanted if not is_done(config)]
    needed = check_all({label(config): config for config in missing})
    short = {name: label(config) for name, config in zip(labels(wanted), wanted, strict=True)}
    check_compared(done, {name: needed[full] for name, full in short.items() if full in needed})
    return _Left(missing, needed)


def _table(
    wanted: Sequence[Config], folder: RunFolder, *, concurrent: int | None, quiet: bool, verbose: bool
) -> Outcome:
    missing, needed = _left(wanted, folder)
    name = folder.path.name
    with record(wanted[0], folder, tag="d2sm.table") as parent:

        def write() -> list[Row]:
            """The table of what is finished so far, as files and in MLflow."""
            found = read_rows([RunFolder.of(config).path for config in wanted if finished(config)])
            for path in render.write(found, folder.path):
                parent.file(path)
            return found

        failed: dict[str, str] = {}
        untracked = send_waiting(config for config in wanted if config not in missing)
        if missing:
            most = resources.runs_that_fit(missing, concurrent, verbose=verbose)
            missing = [config.replace({"tracking.parent": parent.id}) for config in missing]
            what = f"table {name}: {counted(len(missing), 'run')}, {min(most, len(missing))} at a time"
            with Line(what, sum(needed[label(config)].steps for config in missing), quiet=quiet) as line:
                names = [
                    f"{name} seed {config.train.seed}" for config, name in zip(missing, labels(missing), strict=True)
                ]
                failed, lacking = run_all(dict(zip(names, missing, strict=True)), most, line, write)
            untracked |= lacking
        rows = write()
    if lacks := tracked.untracked(parent, folder):
        untracked[name] = lacks
    return Outcome(rows, failed, folder.path, parent.page, parent.uri, untracked)


def _run_name(row: Config, seed: int) -> str:
    """The name of a run: its row and seed; a row with many changed keys is shortened, with a digest of them all."""
    full = label(row)
    return shortened(full.replace(" ", "-").replace("/", "_"), f"-seed{seed}", key=full)
