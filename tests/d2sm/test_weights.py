"""Files of weights that a stranger wrote: nothing in them runs or fills the memory, and each is refused in one line."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from d2sm.weights import WeightsError, read_plain, read_safetensors, read_state_dict


class Planted:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def refused(path: Path, message: str) -> None:
    for read in (read_plain, read_state_dict):
        with pytest.raises(WeightsError, match=message) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors", {"p": "2"})
    for name in ("a.pth", "old.pth", "a.safetensors"):
        found = read_state_dict(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    assert read_safetensors(tmp_path / "a.safetensors")[1] == {"p": "2"}


def test_nothing_in_them_runs(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "a.pth"
    torch.save({"a": Planted(trace)}, path)
    refused(path, "no tensors and plain values")
    path.write_bytes(pickle.dumps(Planted(trace)))
    refused(path, "no tensors and plain values")
    assert not trace.exists()


def test_nothing_in_them_fills_the_memory(tmp_path: Path) -> None:
    path, bomb = tmp_path / "a.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as small:
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert bomb.stat().st_size < path.stat().st_size / 100
    refused(bomb, "compressed entries")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")  # it would be waited for
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none", "No such file")
    for name in ("pipe", "none"):
        with pytest.raises(WeightsError):
            read_safetensors(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        if content[:2] != b"\x80\x02" or name == "a.safetensors":
            with pytest.raises(WeightsError):
                read_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="not a plain state dict"):
        read_state_dict(tmp_path / "list.pth")
