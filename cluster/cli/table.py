"""The verb `table`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.config import Config


def add(verb: argparse.ArgumentParser) -> None:
    """Its options."""
    verb.add_argument(
        "--recipes",
        dest="rows",
        nargs="+",
        required=True,
        metavar="ROW",
        help="recipes, patterns such as 'ffdnet_*_cpu', or NAME:key=value[:key=value] for one with other keys",
    )
    verb.add_argument("--seeds", type=int, default=2, help="runs a row, from train.seed upwards (2)")
    verb.add_argument("--name", default="table", help="folder in train.storage; the same name goes on (table)")
    verb.add_argument("--data", type=Path, metavar="ROOT", help="the same as data.root=ROOT")
    verb.add_argument("--concurrent", type=int, help="at most so many runs at once (as many as fit)")
    verb.add_argument("--quiet", action="store_true", help="no progress line")


def rows(args: argparse.Namespace) -> list[Config]:
    """The rows that are asked for.

    Raises:
        ConfigError: a wrong recipe, key or value; no data.
    """
    from pipelines import config as configs
    from pipelines.table import rows_of

    # Behind --recipes, argparse takes key=value words for rows; those have their ":" before the "=".
    asked = [word for word in args.rows if "=" not in word or ":" in word.partition("=")[0]]
    changes = configs.parse([*(word for word in args.rows if word not in asked), *args.overrides])
    if args.data is not None:
        changes["data.root"] = str(args.data)
    if not changes.get("data.root"):
        raise configs.ConfigError("data.root: give the folder with the photographs, such as --data /data/cityscapes")
    return rows_of(asked, changes)


def run_table(args: argparse.Namespace) -> int:
    """Train what is missing and print the table; 1 when a run failed."""
    from pipelines.comparison import render
    from pipelines.table import table
    from pipelines.tracking.run import ui_command

    outcome = table(
        rows(args),
        name=args.name,
        seeds=args.seeds,
        concurrent=args.concurrent,
        quiet=args.quiet,
        verbose=args.verbose,
    )
    print(f"\n{outcome.text()}\n\ntable  {outcome.folder / render.TEXT}, {outcome.folder / render.JSON}")
    print(f"MLflow {ui_command(outcome.uri)}  then open http://127.0.0.1:5000/{outcome.page}")
    for name, why in outcome.failed.items():
        print(f"failed {name}: {why}; the same command tries it again")
    return 1 if outcome.failed else 0
