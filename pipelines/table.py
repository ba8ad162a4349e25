"""The table job: every chosen row trained and evaluated with several seeds, and what came out, side by side.

A row is a recipe, with a few keys changed if asked. Each of its seeds is a run like any other, in the table's folder;
what is finished there is not repeated. As many run at once as the cluster holds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from pipelines import config as configs
from pipelines import experiment, tracking
from pipelines.comparison import render
from pipelines.comparison.rows import Row, RunsError, gather, label, read
from pipelines.config import Config, ConfigError
from pipelines.data import plan, splits
from pipelines.evaluate import check as check_evaluation
from pipelines.experiment import resolved
from pipelines.recipes import recipe, recipes
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder, check_name
from pipelines.runtime import resources, session
from pipelines.runtime.progress import Line
from pipelines.text import one_line
from pipelines.training import objective
from pipelines.training.messages import Entry, Reader

_KILL = 20.0  # seconds a row has to end after Ctrl-C


@dataclass(frozen=True)
class Outcome:
    """A table: its rows as far as they finished, why the other runs failed, and its files."""

    rows: list[Row]
    failed: Mapping[str, str]
    folder: Path
    page: str
    uri: str

    def text(self) -> str:
        """As it is printed."""
        return render.text(self.rows)


def rows_of(wanted: Sequence[str], changes: Mapping[str, Any]) -> list[Config]:
    """The configurations of rows.

    Args:
        wanted: recipes, patterns such as "ffdnet_*_cpu", or a recipe with keys behind it, "NAME:loss.weight=1".
        changes: dotted keys that all rows take.

    Raises:
        ConfigError: no such recipe, a wrong key or value, or the same row twice.
    """
    found: dict[str, Config] = {}
    for words in wanted:
        pattern, *own = words.split(":")
        names = fnmatch.filter(recipes(), pattern) or [pattern]
        for name in names:
            config = recipe(name).replace({**changes, **configs.parse(own)})
            if label(config) in found:
                raise ConfigError(f"{words}: {label(config)} is already a row")
            found[label(config)] = config
    return list(found.values())


def runs_of(rows: Sequence[Config], *, name: str, seeds: int) -> list[Config]:
    """Every run of a table: all rows with the first seed, then all with the next, so that a part compares them all.

    Raises:
        ConfigError, TrackingError: no seeds, a name that is none, a password in the tracking URI.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: at least 1")
    check_name(name, "name")
    rows = [resolved(row, what="a table") for row in rows]
    return [
        row.replace(
            {
                "train.name": f"{label(row).replace(' ', '-').replace('/', '_')}-seed{row.train.seed + number}",
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
) -> Outcome:
    """Train and evaluate what is missing, and write the table.

    Args:
        rows: from `rows_of`; they differ in what is compared, and are evaluated alike.
        name: of the folder in `train.storage`; the same name goes on.
        seeds: runs a row, from its `train.seed` upwards.
        concurrent: at most so many runs at once; None: as many as fit.

    Raises:
        ConfigError, DataError, ResourceError, TrackingError: one line each, before anything starts. A run that fails
        is in the outcome instead.
    """
    wanted = runs_of(rows, name=name, seeds=seeds)
    left = [config for config in wanted if not done(config)]
    steps = {name: _check(config) for name, config in {label(config): config for config in left}.items()}
    folder = RunFolder.at(RunFolder.of(wanted[0]).path.parent)
    folder.path.mkdir(parents=True, exist_ok=True)
    with _open_run(wanted[0], folder) as run:
        left = [config.replace({"tracking.parent": run.id}) for config in left]
        finish = partial(_write, wanted, folder, run)
        failed = _run(left, steps, finish, concurrent, quiet=quiet, verbose=verbose) if left else {}
        return Outcome(finish(), failed, folder.path, run.page, run.uri)


def done(config: Config) -> bool:
    """Whether this very run is finished, evaluated as it is asked for now."""
    try:
        found = read(RunFolder.of(config).path).config
    except (RunsError, checkpoint.CheckpointError):
        return False
    return not found.differences(config, "results", "length", "run", "evaluation")


def _check(config: Config) -> int:
    """All that can be known to be missing is said before hours of training. Gives the steps of such a run."""
    items = splits.training_images(config)
    check_evaluation(config)
    objective.check_objective(config)
    return plan.total_steps(config, items.num_rows)


def _open_run(first: Config, folder: RunFolder) -> tracking.Run:
    """The table's own MLflow run; those of its rows stand below it."""
    known, tags = folder.read_info().get("run_id"), {"d2sm.table": folder.path.name}
    run = tracking.open_run(first, run_dir=folder.path, tags=tags, run_id=known, whole=False)
    folder.write_info(run_id=run.id, page=run.page)
    return run


def _write(wanted: Sequence[Config], folder: RunFolder, run: tracking.Run) -> list[Row]:
    """The table of what is finished so far, as files and in MLflow."""
    rows = gather([RunFolder.of(config).path for config in wanted if done(config)])
    for path in render.write(rows, folder.path):
        run.file(path)
    return rows


def _run(
    left: list[Config], steps: Mapping[str, int], finish: Any, concurrent: int | None, *, quiet: bool, verbose: bool
) -> dict[str, str]:
    """Run them all, as many at once as fit; gives why some failed, by name. `steps` are a run's, by its label."""
    most = resources.runs_that_fit(left, concurrent, verbose=verbose)
    failed: dict[str, str] = {}
    with Line(f"table, {most} at once", sum(steps[label(config)] for config in left), quiet=quiet) as line:
        watch = _Watch(line)
        with Reader(watch) as reader:
            waiting: list[Config] = list(left)
            running: dict[Any, Config] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < most:
                        config = waiting.pop(0)
                        running[_job.remote(config.model_dump(mode="json"), reader.mailbox)] = config
                    ended, _ = ray.wait(list(running), num_returns=1)
                    config = running.pop(ended[0])
                    if why := _why(ended[0]):
                        failed[config.train.name] = why
                        _settle(config, "FAILED")
                        line.say(f"failed  {config.train.name}: {why}")
                    else:
                        line.say(f"done    {config.train.name}: {read(RunFolder.of(config).path).results.line()}")
                    finish()
            finally:
                _stop(running)
    return failed


@ray.remote(num_cpus=0, max_retries=0)
def _job(tree: Mapping[str, Any], mailbox: Any) -> None:
    """One run, in a process of its own; its workers reserve the CPUs."""
    session.quiet()
    config = Config.model_validate(tree)

    def watch(step: int, metrics: Mapping[str, float]) -> None:
        mailbox.put.remote({"name": config.train.name, "step": step, "loss": metrics["loss"]})

    experiment.run(config, quiet=True, watch=watch)


class _Watch:
    """Entries of the runs -> one line for all of them."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.at: dict[str, int] = {}  # steps done, by run

    def __call__(self, entry: Entry) -> None:
        self.at[entry["name"]] = entry["step"]
        self.line.to(sum(self.at.values()), {entry["name"]: entry["loss"]})


def _why(ended: Any) -> str:
    """Why a run failed; empty when it did not."""
    try:
        ray.get(ended)
    except ray.exceptions.WorkerCrashedError:
        return "its process died (out of memory?)"
    except Exception as error:  # Ray wraps what was raised in several layers
        return one_line(session.cause(error), 600)
    return ""


def _stop(running: Mapping[Any, Config]) -> None:
    """End the runs that are left after Ctrl-C or an error; each goes on from its last checkpoint."""
    for ref in running:
        ray.cancel(ref)
    ray.wait(list(running), num_returns=len(running), timeout=_KILL) if running else None
    for ref, config in running.items():
        ray.cancel(ref, force=True)
        _settle(config, "KILLED")


def _settle(config: Config, status: tracking.Status) -> None:
    run_id = RunFolder.of(config).read_info().get("run_id")
    if run_id:
        tracking.settle(tracking.uri_of(config), {run_id: status})
