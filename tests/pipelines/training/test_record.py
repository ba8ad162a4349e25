"""What the driver says while it waits for messages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.runs.folder import RunFolder
from pipelines.runtime import session
from pipelines.runtime.progress import Line
from pipelines.training.messages import DataMissing, Progress, Skipped, Started
from pipelines.training.record import Recorder
from tests.helpers.checkpoints import CONFIG


def test_that_no_data_come_is_said_once_until_some_do(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By all workers together."""
    opening: Any = SimpleNamespace(run=SimpleNamespace(log=lambda step, metrics: None))
    recorder = Recorder(CONFIG, opening, Line("first", 1, quiet=True), RunFolder(tmp_path), start=0, watch=None)
    said = []
    missing, entry = DataMissing(60.0), {"loss": 1.0, "data_wait": 0.0, "steps_per_second": 1.0}
    for message in (Started(0, 2), missing, missing, Progress(1, entry), missing, Started(1, 2), missing):
        recorder(message)
        line = capsys.readouterr().err
        said.append("first: no crops have come for 60 s; the tasks that cut them are slow, or wait for a CPU" in line)
    assert said == [False, True, False, False, True, False, True]


def test_a_full_disk_under_ray_is_said_once_until_there_is_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    opening: Any = SimpleNamespace(check=lambda: None)
    recorder = Recorder(CONFIG, opening, Line("first", 1, quiet=True), RunFolder(tmp_path), start=0, watch=None)
    said = []
    for needed in (0, 2**60, 2**60, 0, 2**60):
        monkeypatch.setattr(session, "_RAY_STOPS", needed)
        recorder.poll()
        said.append(capsys.readouterr().err.count("and Ray's processes fail without"))
    assert said == [0, 1, 0, 0, 1]


def test_an_image_that_is_skipped_in_every_epoch_is_recorded_once(tmp_path: Path) -> None:
    files: list[str] = []
    tags: list[str] = []
    run = SimpleNamespace(file=lambda path: files.append(path.read_text()), tag=lambda key, value: tags.append(value))
    opening: Any = SimpleNamespace(run=run)
    recorder = Recorder(CONFIG, opening, Line("first", 1, quiet=True), RunFolder(tmp_path), start=0, watch=None)
    for _ in range(3):
        for name in ("a.png", "b.png"):
            recorder(Skipped({name: f"{name}: is truncated"}))
    assert tags == ["1", "2"] and len(files) == 2
    assert json.loads(files[-1]) == {name: f"{name}: is truncated" for name in ("a.png", "b.png")}
