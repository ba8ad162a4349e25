"""run: from a space to its best point, with Ray Tune; the same name again goes on with the sweep."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from pipelines import config as configs
from pipelines.config import Config
from pipelines.data import plan
from pipelines.runtime import files, private, resources
from pipelines.runtime.resources import runs_that_fit
from tuning import live, record, rows, search, trial
from tuning.rows import Row
from tuning.space import Point, SpaceError
from tuning.sweep import Reason, Sweep, check, settled

_TUNE = "tune"  # Ray Tune's own folder in the sweep's


@dataclass(frozen=True)
class Outcome:
    """A finished sweep; `best` is None when no trial finished."""

    sweep: Sweep
    rows: list[Row]
    best: Row | None
    run_id: str
    uri: str
    page: str

    @property
    def config(self) -> Config | None:
        """The best point's whole configuration."""
        return self.sweep.at(self.best.point) if self.best else None

    def text(self) -> str:
        """The ranked table."""
        return rows.text(self.rows, list(self.sweep.space), self.sweep.metrics)


def run(sweep: Sweep, *, concurrent: int | None = None, quiet: bool = False, verbose: bool = False) -> Outcome:
    """Search, or go on with the sweep of this name.

    Args:
        concurrent: at most so many trials at once; None: as many as the cluster holds.
        quiet: no table.
        verbose: let Ray's own log through.

    Raises:
        SpaceError, ConfigError, DataError, ResourceError, TrackingError: one line each, before anything starts.
        KeyboardInterrupt: on Ctrl-C; what was done is kept.
    """
    sweep = settled(sweep)
    points, excluded, reason = check(sweep)
    at_once = runs_that_fit([sweep.base], concurrent, verbose=verbose)
    resources.check(sweep.base)
    _open_folder(sweep, points)
    if not quiet:
        print(_intent(sweep, points, excluded, at_once))
        if early := _early(sweep, reason.items.num_rows):
            print(early)
    with record.open_parent(sweep) as parent:
        base = sweep.base.replace({"tracking.parent": parent.id})
        files.write_text(sweep.folder / trial.BASE, base.dumps())
        _search(sweep, points, reason, at_once, quiet=quiet, verbose=verbose)
        found = rows.load(sweep.folder)
        record.settle(sweep, found)
        best = rows.best(found, sweep.metrics[0])
        record.keep(parent, sweep, found, best)
        if any(row.state in ("waiting", "running") for row in found):
            raise KeyboardInterrupt
    return Outcome(sweep, found, best, parent.id, parent.uri, parent.page)


def _open_folder(sweep: Sweep, points: Sequence[Point] | None) -> None:
    """Make the sweep's folder, or check that it is this sweep's."""
    facts, saved = sweep.facts(), sweep.folder / trial.SETTINGS
    if saved.exists():
        before = json.loads(saved.read_text())
        for name, value in facts.items():
            if before[name] != value:
                raise SpaceError(
                    f"{name}={value}: the sweep {sweep.name} was started with {before[name]}; choose another --name, "
                    "or leave it as it was to go on"
                )
        old = configs.load(sweep.folder / trial.BASE)
        for key, (was, now) in old.differences(sweep.base, "results", "length", "run", "evaluation").items():
            raise SpaceError(f"{key}={now}: the sweep {sweep.name} was started with {was}; choose another --name")
        return
    sweep.folder.mkdir(parents=True, exist_ok=True)
    sweep.base.save(sweep.folder / trial.BASE)
    count = len(points) if points is not None else sweep.trials
    # The file that says that the sweep exists comes last.
    derived = {"count": count, "budgets": sweep.budgets, "evaluates": sweep.evaluates}
    files.write_text(saved, json.dumps({**facts, **derived}, indent=2))


def _intent(sweep: Sweep, points: Sequence[Point] | None, excluded: str, at_once: int) -> str:
    count = len(points) if points is not None else sweep.trials
    fewer = f" (asked for {sweep.trials}: the space has no more)" if sweep.trials and count != sweep.trials else ""
    words = [
        f"{sweep.name}: {count} trials{fewer}, {at_once} at once, {sweep.search} search, scheduler {sweep.scheduler}"
    ]
    return "; ".join([*words, excluded] if excluded else words)


def _early(sweep: Sweep, items: int) -> str | None:
    """A word of warning when trials are judged before they have begun to differ."""
    first = plan.total_steps(sweep.base, items) * sweep.budgets[0] // sweep.budgets[-1]
    warm = sweep.base.train.warmup_steps
    if sweep.scheduler == "none" or first > warm:
        return None
    return (
        f"careful: trials are first judged at step {first}, within train.warmup_steps={warm}, where chance "
        "decides; lower it, take fewer --reports, or more epochs"
    )


def _search(
    sweep: Sweep, points: list[Point] | None, reason: Reason, at_once: int, *, quiet: bool, verbose: bool
) -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no TensorBoard files: MLflow has the numbers
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "10")
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is a row of the table, with a reason
    # A share of the head node is what limits trials: the CPUs are their workers', which Ray Train reserves.
    trainable = tune.with_resources(trial.Trial, {private.HEAD_NODE: int(9900 / at_once) / 10000})
    place = sweep.folder / _TUNE
    if tune.Tuner.can_restore(str(place)):
        tuner = tune.Tuner.restore(str(place), trainable=trainable, resume_unfinished=True)
    else:
        tuner = _tuner(sweep, points, reason, at_once, trainable, quiet=quiet)
    tuner.fit()


def _tuner(
    sweep: Sweep, points: list[Point] | None, reason: Reason, at_once: int, trainable: Any, *, quiet: bool
) -> tune.Tuner:
    metric, folder = sweep.metrics[0], str(sweep.folder)
    options: dict[str, Any] = {"num_samples": 1}
    param_space: dict[str, Any] = {}
    if points is None:
        options = {
            "num_samples": sweep.trials,
            "search_alg": search.optuna(
                sweep.space,
                list(sweep.metrics),
                [rows.mode(m) for m in sweep.metrics],
                seed=sweep.base.train.seed,
                folder=sweep.folder,
                reason=reason,
                concurrent=at_once,
            ),
        }
    else:
        numbered = [{"number": number, "point": point} for number, point in enumerate(points)]
        param_space = {"folder": folder, "trial": tune.grid_search(numbered)}
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            scheduler=search.scheduler_of(sweep.scheduler, sweep.space, metric, rows.mode(metric), sweep.budgets[-1]),
            trial_dirname_creator=lambda t: t.trial_id,
            **options,
        ),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=folder,
            verbose=0,
            callbacks=[live.Live(sweep.folder, at_once, quiet=quiet)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
