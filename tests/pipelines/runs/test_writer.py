"""Checkpoints written in a thread: what is in them, what a second one waits for, what a failure leaves."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.writer import CheckpointWriter, copied
from pipelines.runtime import files
from tests.helpers.checkpoints import kept, parts


def test_a_checkpoint_holds_the_tensors_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while it is written, and changes them."""
    go, written = threading.Event(), checkpoint.write

    def slow(*args: Any, **kwargs: Any) -> None:
        go.wait(10)
        written(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "write", slow)
    made = parts(1)
    with CheckpointWriter(RunFolder.at(tmp_path), 2) as writer:
        writer.save(1, **made)
        for tensor in made["weights"].values():
            tensor.fill_(9)
        made["state"]["step"].fill_(9)
        assert checkpoint.latest(tmp_path) is None
        go.set()
    last = checkpoint.resolve(tmp_path)
    assert checkpoint.load_state(last)["step"] == 1
    assert all(bool((tensor == 1).all()) for tensor in checkpoint.load_model(last)[0].state_dict().values())


def test_the_newest_stay_and_parts_of_a_killed_writer_go(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001").mkdir()
    kept(str(tmp_path), 1, 2, 3, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_checkpoints_that_stay_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is read once for its digest, when it is written; one that was there before, once more."""
    kept(str(tmp_path), 1)
    read: list[str] = []
    sha256 = files.sha256

    def counted(path: Path) -> str:
        read.append(path.parent.name)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", counted)
    kept(str(tmp_path), 2, 3, 4, keep=4)
    assert {name: read.count(name) for name in read} == {
        "step-00000001": 4, ".step-00000002": 4, ".step-00000003": 4, ".step-00000004": 4,
    }  # fmt: skip


def test_an_incomplete_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "state.pt").write_bytes(b"half")
    kept(str(tmp_path), 2)
    assert checkpoint.is_complete(tmp_path / "step-00000002")


def test_what_goes_wrong_is_raised_at_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.write_text("a file where the folder should be")
    writer = CheckpointWriter(RunFolder.at(folder), 2)
    writer.save(1, **parts(1))
    with pytest.raises(OSError, match="run"):
        writer.save(2, **parts(2))


def test_the_error_of_training_is_the_one_that_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="first"), CheckpointWriter(RunFolder.at(folder), 2) as writer:
        writer.save(1, **parts(1))
        raise ValueError("first")


def test_a_copy_shares_nothing() -> None:
    tree = {"a": [torch.ones(2)], "b": (torch.zeros(1), {"c": 3}), "d": None}
    made = copied(tree)
    tree["a"][0].fill_(5)
    assert made["a"][0].tolist() == [1, 1]
    assert made["b"][1] == {"c": 3} and made["d"] is None
