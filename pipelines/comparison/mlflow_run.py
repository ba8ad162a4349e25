"""The MLflow run that keeps the files of a comparison.

A comparison belongs to none of the runs that it compares. It becomes a run of its own in the experiment of the first of
them, which links to all of them; their own records stay as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipelines import tracking
from pipelines.comparison.rows import Row, short_names
from pipelines.text import markdown, markdown_code
from pipelines.tracking.run import experiment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_run(
    client: MlflowClient, rows: Sequence[Row], files: Sequence[Path], numbers: Mapping[str, float], *, name: str
) -> str:
    """Log files and numbers as a new MLflow run; gives its page.

    Args:
        name: of the run, such as "report". The tag `d2sm.<name>` maps each row's short name to the ids of its runs, and
            the description that MLflow shows links to them.
    """
    first = rows[0].runs[0]
    experiment = experiment_of(client, first.config.tracking.experiment, first.uri)
    ids, description = {}, []
    for short_name, row in zip(short_names([row.config for row in rows]), rows, strict=True):
        ids[short_name] = [run.run_id for run in row.runs]
        links = [f"[seed {run.seed}](#/experiments/{experiment}/runs/{quote(run.run_id)})" for run in row.runs]
        description.append(f"* {markdown(short_name)}: {markdown_code(row.label)}, {', '.join(links)}")
    tags = {
        f"d2sm.{name}": json.dumps(ids),
        "mlflow.note.content": "\n".join(description),
        **tracking.provenance(),
    }
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    status = "FAILED"
    try:
        for key, value in numbers.items():
            if not math.isfinite(value):
                continue
            client.log_metric(run_id, key, value)
        for path in files:
            client.log_artifact(run_id, str(path))
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return f"#/experiments/{experiment}/runs/{run_id}"
