"""What a training has left behind, as text on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.text import one_line, show

if TYPE_CHECKING:
    from pipelines.experiment import Outcome


def print_outcome(outcome: Outcome) -> int:
    """The numbers, the checkpoint, the pictures, the registered version, and where MLflow shows the run."""
    trained, results, record = outcome.trained, outcome.results, outcome.record
    show(f"\n{results.table(trained.config.recipe or 'restored')}\n\n({results.convention})")
    for note in results.notes():
        show(note)
    show(f"checkpoint {trained.where}")
    for path in outcome.pictures:
        show(f"picture    {path}")
    if record:
        show(f"registered {record.name} version {record.version} {' '.join(record.aliases)}")
    show(f"MLflow     {mlflow_page(trained.uri, outcome.page)}")
    return warn_untracked(outcome.untracked)


def warn_untracked(untracked: str) -> int:
    """Say on stderr what MLflow lacks; gives the exit code, 1 if it lacks something."""
    if untracked:
        show(f"d2sm: {one_line(untracked, limit=None)}", file=sys.stderr)
    return int(bool(untracked))


def warn_untracked_runs(untracked: Mapping[str, str]) -> int:
    """The same for several runs, by name."""
    return max((warn_untracked(f"{name}: {lacks}") for name, lacks in untracked.items()), default=0)


def mlflow_page(uri: str, page: str) -> str:
    """How to look at a run in MLflow's pages: the command that serves them, and the address to open."""
    from pipelines.tracking import ui_command

    return f"{ui_command(uri)}  then open http://127.0.0.1:5000/{page}"
