"""Run a sweep with Ray Tune: from a space to its best point. The same name again resumes the sweep."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler

from pipelines import config as configs
from pipelines import parsing
from pipelines.check import refuse, unused
from pipelines.config import Config
from pipelines.data import plan, splits
from pipelines.runs.folder import RunFolder
from pipelines.runs.trust import TrustError
from pipelines.runtime import files, private, provenance, resources
from pipelines.runtime.resources import runs_that_fit
from pipelines.text import counted, show
from pipelines.training import tracked
from tuning import interrupt, live, mlflow_run, search, trial, trials
from tuning.space import SpaceError
from tuning.sweep import Candidates, Sweep, check, resolved
from tuning.trials import TrialSummary

_TUNE = "tune"  # Ray Tune's own folder, in the sweep's
_TUNER = "tuner.pkl"  # in there: what it restores a sweep from


@dataclass(frozen=True)
class Outcome:
    """A sweep that ended.

    Attributes:
        best: None if no trial finished.
        run_id, uri, page: its own MLflow run, the store that it is in, and its page.
        untracked: what MLflow lacks of the sweep or of a trial, by name (see `tracked.untracked`).
    """

    sweep: Sweep
    trials: list[TrialSummary]
    best: TrialSummary | None
    run_id: str
    uri: str
    page: str
    untracked: Mapping[str, str]

    @property
    def config(self) -> Config | None:
        """The configuration of the best point."""
        return self.sweep.configuration(self.best.point) if self.best else None

    def text(self) -> str:
        """The ranked table of the trials."""
        return trials.text(self.trials, list(self.sweep.space), self.sweep.metrics)


def run(
    sweep: Sweep,
    *,
    concurrent: int | None = None,
    trust: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    given: Collection[str] = (),
) -> Outcome:
    """Run a sweep, or resume the one of this name.

    Args:
        concurrent: at most so many trials at once; None: as many as the cluster holds.
        trust: resume from files that this user did not write here; Ray Tune's are pickles, which can run code.
        quiet: no table while it runs.
        verbose: let Ray's own log through.
        given: keys of the base whose values somebody asked for (see `splits.settled`).

    Raises:
        SpaceError, ConfigError, InUseError, DataError, SegmenterError, EvaluationError, ResourceError, TrackingError:
            one line, and before anything starts.
        KeyboardInterrupt: on Ctrl-C; what was trained and measured is kept.
    """
    base, said = splits.settled(sweep.base, given=given)
    refuse(list(unused(base, given, sweep.space)))
    for line in said:
        show(line)
    sweep = resolved(replace(sweep, base=base))
    _check_trusted(sweep, trust)
    with RunFolder.at(sweep.folder).owned("wait until it has ended, or choose another --name"):
        return _run(sweep, concurrent=concurrent, quiet=quiet, verbose=verbose)


def _run(sweep: Sweep, *, concurrent: int | None, quiet: bool, verbose: bool) -> Outcome:
    candidates = check(sweep)
    at_once = runs_that_fit([sweep.base], concurrent, verbose=verbose)
    resources.check(sweep.base)
    resources.check_process(sweep.base)
    _open_folder(sweep, _trials(sweep, candidates))
    if not quiet:
        show(_announcement(sweep, candidates, at_once))
        if warning := _early_judgement(sweep, candidates.reason.items.num_rows):
            show(warning)
    with mlflow_run.open_run(sweep) as parent:
        base = sweep.base.replace({"tracking.parent": parent.id})
        files.write_text(sweep.folder / trial.BASE, base.dumps())
        refused = mlflow_run.refused(sweep)
        stopped = True  # also by an error
        try:
            stopped = _search(sweep, candidates, at_once, quiet=quiet, verbose=verbose)
        finally:  # a trial whose process was ended has left its MLflow run as RUNNING
            found = trials.load(sweep.folder)
            stopped |= any(each.state in ("waiting", "running") for each in found)
            unsettled = mlflow_run.settle_trials(sweep, found)
            if unsettled and stopped:  # else the outcome says it
                show(f"d2sm: {unsettled}", file=sys.stderr)
        best = trials.best(found, sweep.metrics[0])
        mlflow_run.save(parent, sweep, found, best)
        if stopped:
            raise KeyboardInterrupt
        untracked = mlflow_run.send_waiting(sweep, found, refused)
    own = tracked.untracked(parent, RunFolder.at(sweep.folder))
    if lacks := "; ".join(line for line in (unsettled, own) if line):
        untracked[sweep.name] = lacks
    return Outcome(sweep, found, best, parent.id, parent.uri, parent.page, untracked)


def _check_trusted(sweep: Sweep, trust: bool) -> None:
    """Make sure that Ray Tune's files, which it unpickles, were written here by this user.

    Raises:
        TrustError: they were not, or were changed since, and the user does not trust them.
    """
    place = sweep.folder / _TUNE
    if os.path.lexists(place / _TUNER) and not (trust or provenance.made_here(place, _TUNER)):
        raise TrustError(
            f"name={sweep.name}: {place} holds pickles, which can run code, and was not written here by you, or was "
            "changed since; if you know who made it, resume it with --trust (trust=True), else choose another --name"
        )


def _open_folder(sweep: Sweep, count: int) -> None:
    """Make the sweep's folder, or make sure that it is this sweep's.

    Args:
        count: of its trials.

    Raises:
        SpaceError: the name belongs to another sweep; names what differs.
    """
    settings, saved = sweep.settings(), sweep.folder / trial.SETTINGS
    if saved.exists():
        remedy = "choose another --name, or leave it as it was to resume that sweep"
        before: Mapping[str, Any] = parsing.read_json(saved, error=SpaceError, remedy="choose another --name")
        for name, value in settings.items():
            if name not in before or before[name] != value:
                was = before.get(name, "no such setting")
                raise SpaceError(f"{name}={value}: the sweep {sweep.name} was started with {was}; {remedy}")
        trial.settings_of(sweep.folder)
        base = configs.load(sweep.folder / trial.BASE)
        for key, (was, now) in base.differences(sweep.base, "results", "length", "run", "evaluation").items():
            raise SpaceError(f"{key}={now}: the sweep {sweep.name} was started with {was}; {remedy}")
        return
    sweep.folder.mkdir(parents=True, exist_ok=True)
    provenance.mark(sweep.folder)
    sweep.base.save(sweep.folder / trial.BASE)
    derived = {"count": count, "budgets": sweep.budgets, "evaluates": sweep.evaluates}
    files.write_text(saved, json.dumps({**settings, **derived}, indent=2))  # last: it says that the sweep exists


def _trials(sweep: Sweep, candidates: Candidates) -> int:
    """How many a sweep has: those that are listed, else as many as were asked for and the space holds."""
    if candidates.points is not None:
        return len(candidates.points)
    assert sweep.trials is not None  # as `Sweep` requires
    return sweep.trials if candidates.valid is None else min(sweep.trials, candidates.valid)


def _announcement(sweep: Sweep, candidates: Candidates, at_once: int) -> str:
    count = _trials(sweep, candidates)
    fewer = f" ({sweep.trials} asked for, but the space has no more)" if sweep.trials and count != sweep.trials else ""
    line = (
        f"sweep {sweep.name}: {counted(count, 'trial')}{fewer}, {at_once} at a time, {sweep.search} search, scheduler "
        f"{sweep.scheduler}"
    )
    return f"{line}; {candidates.excluded}" if candidates.excluded else line


def _early_judgement(sweep: Sweep, images: int) -> str | None:
    """A warning if trials are first compared before their differences can show."""
    first = trial.step_at(sweep.budgets[0], sweep.budgets[-1], plan.total_steps(sweep.base, images))
    warmup = sweep.base.train.warmup_steps
    if sweep.scheduler == "none" or first > warmup:
        return None
    return (
        f"warning: the scheduler first compares trials at step {first}, within train.warmup_steps={warmup}, where "
        "differences are mostly chance; lower train.warmup_steps or --reports, or train for more epochs"
    )


def _search(sweep: Sweep, candidates: Candidates, at_once: int, *, quiet: bool, verbose: bool) -> bool:
    """Run Ray Tune, or resume its run in the sweep's folder; gives whether a signal has ended it."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no TensorBoard files: MLflow has the numbers
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "10")
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the table says why a trial failed
    # Trials reserve parts of the head node, which bounds how many run. CPUs are reserved by their workers (Ray Train).
    reserved = {private.HEAD_NODE: int(9900 / at_once) / 10000, **resources.process_resources(sweep.base)}
    trainable = tune.with_resources(trial.Trial, {name: amount for name, amount in reserved.items() if amount})
    place = str(sweep.folder / _TUNE)
    if tune.Tuner.can_restore(place):
        tuner = tune.Tuner.restore(place, trainable=trainable, resume_unfinished=True)
        private.replace_scheduler(tuner, _scheduler(sweep))  # Ray Tune takes the pickled one, as it was at the start
        searcher, _ = private.parts_of(tuner)
        if isinstance(searcher, search.ConcurrencyLimiter):  # not in a sweep that an earlier version started
            searcher.max_concurrent = at_once
    else:
        tuner = _new_tuner(sweep, candidates, at_once, trainable, quiet=quiet)
    shown = [callback for callback in private.parts_of(tuner)[1] if isinstance(callback, live.Live)]
    for table in shown:
        table.concurrent, table.quiet = at_once, quiet
    provenance.mark(sweep.folder / _TUNE, _TUNER)  # written once, before the first trial
    try:
        return interrupt.fit(tuner, sweep.name)
    finally:  # after a second Ctrl-C, Ray Tune does not call `on_experiment_end`
        for table in shown:
            table.close()


def _scheduler(sweep: Sweep) -> TrialScheduler:
    metric, seed = sweep.metrics[0], sweep.base.train.seed
    return search.scheduler_of(sweep.scheduler, sweep.space, metric, trials.mode(metric), sweep.budgets[-1], seed=seed)


def _new_tuner(sweep: Sweep, candidates: Candidates, at_once: int, trainable: Any, *, quiet: bool) -> tune.Tuner:
    modes = [trials.mode(metric) for metric in sweep.metrics]
    folder = str(sweep.folder)
    options: dict[str, Any] = {"num_samples": 1}
    param_space: dict[str, Any] = {}
    if candidates.points is None:
        options = {
            "num_samples": sweep.trials,
            "search_alg": search.optuna(
                sweep.space,
                sweep.metrics,
                modes,
                seed=sweep.base.train.seed,
                folder=sweep.folder,
                reason=candidates.reason,
                concurrent=at_once,
            ),
        }
    else:
        numbered = [{"number": number, "point": point} for number, point in enumerate(candidates.points)]
        param_space = {"folder": folder, "trial": tune.grid_search(numbered)}
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(scheduler=_scheduler(sweep), trial_dirname_creator=lambda t: t.trial_id, **options),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=folder,
            verbose=0,
            callbacks=[live.Live(sweep.folder, at_once, quiet=quiet)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
