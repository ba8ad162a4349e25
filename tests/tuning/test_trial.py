"""A trial by itself: what it has measured is kept, and why it failed is found under its own number."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.data.images import DataError
from pipelines.runs.checkpoint import CheckpointError
from pipelines.train import Trained
from tests.helpers.sweeps import tiny_sweep
from tuning.live import Live
from tuning.space import SpaceError
from tuning.trial import FAILED, Trial, _logged, reports_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a sweep whose photographs are gone."""
    sweep = tiny_sweep(tmp_path / "nowhere", tmp_path, reports=2)
    sweep.folder.mkdir()
    sweep.base.save(sweep.folder / "base.yaml")
    derived = {"count": 2, "budgets": sweep.budgets, "evaluates": sweep.evaluates}
    (sweep.folder / "sweep.json").write_text(json.dumps({**sweep.settings(), **derived}))
    return sweep.folder


def _config(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "trial": {"number": 0, "point": {"train.lr": 1e-3}}}


def _why(folder: Path) -> str:
    file = folder / "000" / FAILED
    why = str(json.loads(file.read_text())["why"])
    file.unlink()
    return why


def test_why_a_trial_failed_is_under_its_number(folder: Path, tmp_path: Path) -> None:
    trial = Trial(_config(folder))
    trial.name = "000-from-001-1"  # in population-based training, after it has taken over another's state
    with pytest.raises(DataError):
        trial.step()
    assert "nowhere" in _why(folder)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(CheckpointError):
        trial.save_checkpoint(str(tmp_path / "checkpoint"))
    assert "000-from-001-1" in _why(folder)
    (tmp_path / "checkpoint" / "place.json").write_text("{")
    with pytest.raises(SpaceError):
        trial.load_checkpoint(str(tmp_path / "checkpoint"))
    assert "place.json" in _why(folder)
    (folder / "sweep.json").write_text("{")
    with pytest.raises(SpaceError):
        Trial(_config(folder))
    assert "sweep.json" in _why(folder)


def test_a_report_is_taken_as_it_is_unless_it_lacks_a_metric(folder: Path) -> None:
    """Ray Tune ends a sweep at a report without one; an earlier version may have written such a report."""
    (folder / "000" / "reports").mkdir(parents=True)
    (folder / "000" / "reports" / "0001.json").write_text('{"step": 3, "loss.l1": 0.5}')
    (folder / "000" / "reports" / "0002.json").write_text('{"step": 6}')
    assert reports_of(folder, 0) == {1: {"step": 3, "loss.l1": 0.5}, 2: {"step": 6}}
    trial = Trial(_config(folder))
    assert trial.step() == {"step": 3, "loss.l1": 0.5, "budget": 1, "done": False}
    with pytest.raises(DataError):  # measured again
        trial.step()


@pytest.mark.slow
def test_where_nothing_is_left_to_train_the_log_has_the_metrics(l1_run: Trained) -> None:
    assert "loss.l1" in l1_run.metrics and _logged(replace(l1_run, metrics={})) == l1_run.metrics


def test_the_cursor_is_shown_again(folder: Path) -> None:
    live, shown = Live(folder, 1, quiet=False), io.StringIO()
    live.console = Console(file=shown, force_terminal=True)
    live.on_step_end(0, [])
    hidden, again = "\x1b[?25l", "\x1b[?25h"
    assert hidden in shown.getvalue() and again not in shown.getvalue()
    live.close()
    assert again in shown.getvalue()
