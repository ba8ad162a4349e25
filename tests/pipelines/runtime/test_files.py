"""Files and folders written whole or not at all: killed writers, failed writers, and readers beside a writer."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.runtime import files

_KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.runtime import files
with files.replacing(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as temporary:
    if sys.argv[3] == "folder":
        temporary.mkdir()
        (temporary / "half").write_text("half")
    else:
        temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, *, shared: bool = False, folder: bool = False) -> None:
    """A writer of this path that is killed in the middle."""
    arguments = [str(path), "shared" if shared else "alone", "folder" if folder else "file"]
    assert subprocess.run([sys.executable, "-c", _KILLED, *arguments]).returncode == -signal.SIGKILL


@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_writer_leaves_the_former_file_and_a_leftover_that_is_swept(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")
    killed(path, shared=shared)
    assert path.read_text() == "before"
    (leftover,) = (file for file in tmp_path.iterdir() if file != path)
    assert files.is_leftover(leftover) and not files.is_leftover(path)
    assert files.sweep(tmp_path) == [leftover]
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_writer_overwrites_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    killed(path, folder=True)
    files.write_text(path, "after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_former_file_and_its_own_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")
    with pytest.raises(type(error)) as raised, files.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert raised.value is error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    path.mkdir()
    (path / "old").write_text("old")
    with files.replacing(path, temporary=tmp_path / ".step-1") as temporary:
        temporary.mkdir()
        assert temporary == tmp_path / ".step-1" and (path / "old").exists()
        (temporary / "new").write_text("new")
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_who_finished_first_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with files.replacing(path, shared=True, keep=True) as late:
        late.mkdir()
        with files.replacing(path, shared=True, keep=True) as early:
            assert early != late
            early.mkdir()
            (early / "first").touch()
    assert [file.name for file in path.iterdir()] == ["first"] and list(tmp_path.iterdir()) == [path]


def test_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "photograph.png"
    with files.replacing(path, shared=True, sync=True) as one:
        one.write_text("one")
        with files.replacing(path, shared=True) as other:
            other.write_text("other")
        assert path.read_text() == "other" and one.read_text() == "one"
    assert path.read_text() == "one"


def test_readers_see_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    whole = [digit * 200_000 for digit in "01"]
    files.write_text(path, whole[0])
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            files.write_text(path, whole[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_text())
    writer.join()
    assert seen <= set(whole) and seen
