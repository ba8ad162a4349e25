"""One process at a time owns a folder; the second one is told who does, and a killed one owns nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.runtime import owner
from pipelines.runtime.owner import InUseError, owned
from tests.helpers.owners import owning


def test_the_second_process_is_told_who_owns_it_and_a_killed_one_owns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with owning(folder) as process:
        monkeypatch.setattr(owner, "_PATIENCE", 0.2)
        with pytest.raises(InUseError) as error, owned(folder, remedy="choose another name"):
            pass
        text = str(error.value)
        assert text.startswith(f"{folder}: is in use by process {process.pid} on {socket.gethostname()} since 20")
        assert text.endswith(" UTC; choose another name") and "\n" not in text
        monkeypatch.setattr(owner, "_PATIENCE", 20.0)
        threading.Timer(0.3, process.kill).start()  # as a driver that is started again right after it was killed
        with owned(folder, remedy="") as got:
            assert got is None and (folder / owner.FILE).exists()
    assert folder.exists() and not (folder / owner.FILE).exists()


def test_children_do_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes outlive a killed driver for a while."""
    with owned(tmp_path, remedy=""):
        child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                                 stdout=subprocess.PIPE, close_fds=False)  # fmt: skip
        assert child.stdout is not None and child.stdout.readline()
    try:
        monkeypatch.setattr(owner, "_PATIENCE", 0.0)
        with owned(tmp_path, remedy=""):
            pass
    finally:
        child.kill()
        child.wait()


def test_it_nests_within_a_thread_and_not_across_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_PATIENCE", 0.0)
    said: list[str] = []

    def other() -> None:
        try:
            with owned(tmp_path, remedy=""):
                pass
        except InUseError as error:
            said.append(str(error))

    with owned(tmp_path, remedy=""):
        with owned(tmp_path, remedy=""):
            assert owner.is_owned(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert owner.is_owned(tmp_path)
    assert f"process {os.getpid()} on" in said[0] and not owner.is_owned(tmp_path)


def test_a_folder_to_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mistake"), owned(tmp_path / "new", remedy=""):
        raise ValueError("mistake")
    with owned(tmp_path / "kept", remedy=""):
        (tmp_path / "kept" / "a").write_text("")
    (tmp_path / "old").mkdir()
    with owned(tmp_path / "old", remedy=""):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "old"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    with (
        pytest.raises(OSError, match=f"^{below}: cannot be written .Not a d.*; give a folder"),
        owned(below, remedy=""),
    ):
        pass
    (tmp_path / owner.FILE).symlink_to(tmp_path / "elsewhere")  # planted
    with pytest.raises(OSError, match="cannot be written"), owned(tmp_path, remedy=""):
        pass
    assert not (tmp_path / "elsewhere").exists()


_AS_NOBODY = """
import os, pathlib, sys
from pipelines.runtime import owner
owner.in_use("", "{}", "")  # imports what it needs, which another user may not be able to read
os.umask(0o002)
os.setresgid(os.getgid(), os.getgid(), os.getgid())
os.setresuid(65534, 65534, 65534)
owner._PATIENCE = 0.0
try:
    with owner.owned(pathlib.Path(sys.argv[1]), remedy="wait"):
        print("owned")
except (owner.InUseError, OSError) as error:
    print(error)
"""


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which root alone can")
def test_the_file_of_another_users_process_in_a_folder_of_both(shared_place: Path) -> None:
    """A killed one's is taken over; a living one's is said; and so is one of which neither can be known."""

    def as_nobody() -> str:
        words = [sys.executable, "-c", _AS_NOBODY, str(folder)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    shared_place.chmod(0o755)
    folder = shared_place / "run"
    folder.mkdir()
    folder.chmod(0o777)
    left = folder / owner.FILE
    with owning(folder) as process:
        assert as_nobody().startswith(f"{folder}: is in use by process {process.pid} on ")
    assert left.stat().st_uid == 0
    assert as_nobody() == "owned" and not left.exists()
    left.touch(0o600)
    assert as_nobody().startswith(f"{left}: is another user's, and whether their process still writes")
    left.chmod(0o644)
    folder.chmod(0o1777)  # as /tmp
    assert as_nobody().startswith(f"{left}: was left by a process of another user and cannot be removed (Operation")
    left.unlink()
    folder.chmod(0o755)
    assert as_nobody() == f"{folder}: cannot be written (Permission denied); give a folder that can"


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with owned(tmp_path, remedy=""):
        pass
    assert caplog.messages == [
        f"{tmp_path}: its file system has no locks (No locks available), so a second process that writes there would "
        "not be noticed"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "\\u001b[31m", "host": "a\\nb", "since": {}}'])
def test_what_the_owner_wrote_is_not_trusted(text: str) -> None:
    line = str(owner.in_use("runs/a", text, "wait"))
    assert line.startswith("runs/a: is in use by ") and line.endswith("; wait") and line.isprintable()
