"""A sweep in MLflow: one run with the table, the figure and the best configuration; the runs of its trials below it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipelines import tracking
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files
from pipelines.text import one_line
from pipelines.tracking import outbox
from pipelines.training import tracked
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


def settle_trials(sweep: Sweep, found: Sequence[TrialSummary]) -> str:
    """Note in each trial's MLflow run how the trial ended; a process that died left its run as RUNNING.

    Returns:
        Why MLflow does not have that, on one line; "" if it has.
    """
    statuses: dict[str, tracking.Status] = {"failed": "FAILED", "finished": "FINISHED", "stopped": "FINISHED"}
    ends: dict[str, tracking.Status] = {}
    tags = {}
    for trial in found:
        for folder in _runs_of(sweep, trial):
            if run_id := folder.read_info().get("run_id"):
                ends[run_id] = statuses.get(trial.state, "KILLED")
                tags[run_id] = {"d2sm.trial": trial.state}
    try:
        tracking.end_runs(tracking.uri_of(sweep.base), ends, tags)
    except tracking.TrackingError as error:
        return f"how the trials ended could not be written to MLflow; the same command tries again: {one_line(error)}"
    return ""


def refused(sweep: Sweep) -> dict[str, int]:
    """The runs of which MLflow refused records, with the bytes of these."""
    return {file.parent.name: file.stat().st_size for file in sweep.folder.glob(f"*/{outbox.REFUSED}")}


def send_waiting(sweep: Sweep, found: Sequence[TrialSummary], before: Mapping[str, int]) -> dict[str, str]:
    """Send what MLflow did not take when the trials ended; gives what it lacks of each, by the trial's run.

    Args:
        before: what `refused` gave before the trials began: that was said by then.
    """
    uri, now = tracking.uri_of(sweep.base), refused(sweep)
    left: dict[str, str] = {}
    for folder in (folder for trial in found for folder in _runs_of(sweep, trial)):
        name = folder.path.name
        lines = [tracked.send_waiting(folder, uri)]
        if now.get(name, 0) > before.get(name, 0):
            lines.insert(0, outbox.refused_line(folder.path, "records"))
        if lacks := "; ".join(filter(None, lines)):
            left[f"trial {name}"] = lacks
    return left


def _runs_of(sweep: Sweep, trial: TrialSummary) -> list[RunFolder]:
    """The folders of a trial's runs; population-based training begins further ones, such as 001-from-002-1."""
    name = trial_name(trial.number)
    found = sorted(folder for folder in sweep.folder.glob(f"{name}*") if folder.name.partition("-")[0] == name)
    return list(map(RunFolder.at, found))
