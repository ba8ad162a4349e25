"""What a training has left behind, as text on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.text import show

if TYPE_CHECKING:
    from pipelines.experiment import Outcome


def print_outcome(outcome: Outcome) -> None:
    """The numbers, the checkpoint, the pictures, the registered version, and where MLflow shows the run."""
    trained, results, record = outcome.trained, outcome.results, outcome.record
    show(f"\n{results.table(trained.config.recipe or 'restored')}\n\n({results.convention})")
    if not results.segmenter:
        show("MIoU was not measured: there are no labels, or evaluate.segmenter is not set")
    show(f"checkpoint {trained.where}")
    for path in outcome.pictures:
        show(f"picture    {path}")
    if record:
        show(f"registered {record.name} version {record.version} {' '.join(record.aliases)}")
    show(f"MLflow     {mlflow_page(trained.uri, outcome.page)}")


def mlflow_page(uri: str, page: str) -> str:
    """How to look at a run in MLflow's pages: the command that serves them, and the address to open."""
    from pipelines.tracking import ui_command

    return f"{ui_command(uri)}  then open http://127.0.0.1:5000/{page}"
