"""A sweep in MLflow: one run with the table, the figure and the best configuration; the runs of its trials below it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from pipelines import tracking
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files
from pipelines.text import show
from tuning import figure, trials
from tuning.sweep import Sweep
from tuning.trial import trial_name
from tuning.trials import TrialSummary

TABLE, FIGURE, BEST = "trials.txt", "search.png", "best.yaml"


def open_run(sweep: Sweep) -> tracking.Run:
    """The sweep's own MLflow run; the one it had before if the sweep is resumed."""
    settings = {f"d2sm.sweep.{key}": value for key, value in sweep.settings().items()}
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    folder = RunFolder.at(sweep.folder)
    run = tracking.open_run(
        sweep.base,
        run_dir=folder.path,
        tags={"d2sm.recipe": sweep.base.recipe, **tags},
        run_id=folder.read_info().get("run_id"),
    )
    folder.write_info(run_id=run.id)
    return run


def save(run: tracking.Run, sweep: Sweep, found: Sequence[TrialSummary], best: TrialSummary | None) -> None:
    """Write the table, the figure and the best configuration into the sweep's folder and its MLflow run."""
    files.write_text(sweep.folder / TABLE, trials.text(found, list(sweep.space), sweep.metrics) + "\n")
    written = [sweep.folder / TABLE, figure.draw(found, sweep.space, sweep.metrics, sweep.folder / FIGURE)]
    if best is not None:
        files.write_text(sweep.folder / BEST, sweep.configuration(best.point).dumps())
        written.append(sweep.folder / BEST)
        run.results({f"best.{metric}": best.value(metric) for metric in sweep.metrics})
        run.tag("d2sm.sweep.best", trial_name(best.number))
    for file in written:
        run.file(file)


def settle_trials(sweep: Sweep, found: Sequence[TrialSummary]) -> None:
    """Note in each trial's MLflow run how the trial ended; a process that died left its run as RUNNING."""
    statuses: dict[str, tracking.Status] = {"failed": "FAILED", "finished": "FINISHED", "stopped": "FINISHED"}
    ends: dict[str, tracking.Status] = {}
    tags = {}
    for trial in found:
        for folder in sorted(sweep.folder.glob(f"{trial_name(trial.number)}*")):
            if run_id := RunFolder.at(folder).read_info().get("run_id"):
                ends[run_id] = statuses.get(trial.state, "KILLED")
                tags[run_id] = {"d2sm.trial": trial.state}
    try:
        tracking.end_runs(tracking.uri_of(sweep.base), ends, tags)
    except tracking.TrackingError as error:
        show(
            f"d2sm: how the trials ended could not be written to MLflow; the same command tries again: {error}",
            file=sys.stderr,
        )
