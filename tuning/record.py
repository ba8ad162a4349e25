"""A sweep in MLflow: one parent run with the table and the picture; every trial is a run of its own below it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from pipelines import tracking
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files
from tuning import picture, rows
from tuning.rows import Row
from tuning.sweep import Sweep
from tuning.trial import name_of

TABLE, PICTURE, BEST = "trials.txt", "search.png", "best.yaml"


def open_parent(sweep: Sweep) -> tracking.Run:
    """The sweep's own run, continued when there is one."""
    facts = {f"d2sm.sweep.{key}": value for key, value in sweep.facts().items()}
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    folder = RunFolder.at(sweep.folder)
    run = tracking.open_run(
        sweep.base,
        run_dir=folder.path,
        tags={"d2sm.recipe": sweep.base.recipe, **tags},
        run_id=folder.read_info().get("run_id"),
    )
    folder.write_info(run_id=run.id)
    return run


def keep(run: tracking.Run, sweep: Sweep, found: Sequence[Row], best: Row | None) -> None:
    """Write the table, the picture and the best configuration, and put them into the sweep's run."""
    files.write_text(sweep.folder / TABLE, rows.text(found, list(sweep.space), sweep.metrics) + "\n")
    drawn = [sweep.folder / TABLE, picture.draw(found, sweep.space, sweep.metrics, sweep.folder / PICTURE)]
    if best is not None:
        files.write_text(sweep.folder / BEST, sweep.at(best.point).dumps())
        drawn.append(sweep.folder / BEST)
        run.results({f"best.{metric}": best.value(metric) for metric in sweep.metrics})
        run.tag("d2sm.sweep.best", name_of(best.number))
    for file in drawn:
        run.file(file)


def settle(sweep: Sweep, found: Sequence[Row]) -> None:
    """Say in every trial's run how it ended; one whose process died still says that it is running."""
    states: dict[str, tracking.Status] = {"failed": "FAILED", "finished": "FINISHED", "stopped": "FINISHED"}
    ends: dict[str, tracking.Status] = {}
    tags = {}
    for row in found:
        for run_dir in sorted(sweep.folder.glob(f"{name_of(row.number)}*")):
            if run_id := RunFolder.at(run_dir).read_info().get("run_id"):
                ends[run_id] = states.get(row.state, "KILLED")
                tags[run_id] = {"d2sm.trial": row.state}
    try:
        tracking.settle(tracking.uri_of(sweep.base), ends, tags)
    except tracking.TrackingError as error:
        print(f"d2sm: how the trials ended is not in MLflow, the same command adds it: {error}", file=sys.stderr)
