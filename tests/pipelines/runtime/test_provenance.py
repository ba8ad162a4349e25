"""What counts as made here by this user, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.runtime import provenance
from pipelines.runtime.provenance import MARK, made_here, mark


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def made(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tuner.pkl").write_bytes(b"as it was")
    mark(folder, "tuner.pkl")
    return folder


def test_a_folder_that_was_made_here(tmp_path: Path) -> None:
    folder = made(tmp_path / "made")
    assert made_here(folder, "tuner.pkl")
    assert made_here(folder.rename(tmp_path / "moved"), "tuner.pkl")
    assert not made_here(tmp_path / "moved")  # vouched for with the file alone


def test_the_key_is_private(tmp_path: Path, home: Path) -> None:
    folder = made(tmp_path / "made")
    key = home / ".d2sm" / "key"
    assert key.stat().st_mode & 0o777 == 0o600 and key.parent.stat().st_mode & 0o777 == 0o700
    assert list(key.parent.iterdir()) == [key]
    key.chmod(0o644)  # others know it, so it vouches for nothing
    assert not made_here(folder, "tuner.pkl")
    mark(folder, "tuner.pkl")  # makes a new one
    assert made_here(folder, "tuner.pkl") and key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "kind", ["copied", "changed", "unmarked", "of another key", "empty mark", "folder as mark", "gone"]
)
def test_what_was_not(kind: str, tmp_path: Path, home: Path) -> None:
    folder = made(tmp_path / "made")
    if kind == "copied":
        folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    elif kind == "changed":
        (folder / "tuner.pkl").write_bytes(b"another")
    elif kind == "unmarked":
        (folder / MARK).unlink()
    elif kind == "of another key":
        shutil.rmtree(home / ".d2sm")
        made(tmp_path / "other")
    elif kind == "empty mark":
        (folder / MARK).write_text("")
    elif kind == "folder as mark":
        (folder / MARK).unlink()
        (folder / MARK).mkdir()
    else:
        (folder / "tuner.pkl").unlink()
    assert not made_here(folder, "tuner.pkl")


def test_a_home_that_cannot_be_written_makes_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    folder = made(tmp_path / "made")
    assert not (folder / MARK).exists() and not made_here(folder, "tuner.pkl")


def test_of_two_first_processes_one_makes_the_key(tmp_path: Path) -> None:
    keys = {provenance._new_key() for _ in range(2)}
    assert len(keys) == 1
