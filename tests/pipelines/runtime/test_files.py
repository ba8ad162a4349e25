"""Files and folders written whole or not at all: killed writers, failed writers, and readers beside a writer."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
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


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["x" * 255, "x" * 251 + ".png", "\u6f22" * 85])
def test_a_name_of_the_greatest_length_is_written(tmp_path: Path, name: str, shared: bool) -> None:
    path = tmp_path / name
    with files.replacing(path, shared=shared) as temporary:
        temporary.write_text("whole")
        assert files.is_leftover(temporary)
    with files.replacing(path, shared=shared) as again:
        again.write_text("again")
        assert shared or again == temporary  # so that it overwrites what a killed writer left
    assert path.read_text() == "again" and list(tmp_path.iterdir()) == [path]


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


def test_a_full_disk_names_the_file_and_what_is_free(tmp_path: Path) -> None:
    """/dev/full stands for the disk: every write to it fails as on a full one, with an error that names no file."""
    target = tmp_path / "a.json"
    target.write_text("before")
    with pytest.raises(files.DiskFullError) as error, files.replacing(target) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("after")
    line, size = str(error.value), "[0-9.e+]+ [MG]iB"
    assert re.fullmatch(
        f"{re.escape(str(target))}: no space left on its disk \\({size} of {size} are free\\); free some space, and "
        "run the same command again",
        line,
    ), line
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and target.read_text() == "before"


def test_a_file_above_the_limit_of_the_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, signal, sys; from pipelines.runtime import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_text(pathlib.Path(sys.argv[1]), 'x' * 5000)\n"
        "except files.DiskFullError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.startswith(
        f"{tmp_path / 'a'}: would be larger than this process may write (ulimit -f)"
    )
    assert not list(tmp_path.iterdir())


def test_a_home_folder_that_cannot_be_written_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file in its place, which root cannot write to either")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(OSError, match="what is downloaded cannot be kept there") as error, files.caching(files.cache()):
        pass
    assert str(error.value) == (
        f"{tmp_path}/home/.cache/d2sm: what is downloaded cannot be kept there (Not a directory); set XDG_CACHE_HOME "
        "to a folder that can be written"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with files.caching(files.cache()):
        assert (tmp_path / "cache" / "d2sm").is_dir()


def test_a_folder_of_the_owner_alone(tmp_path: Path) -> None:
    """Private from the start; one that an earlier version made is closed."""
    made = files.private_folder(tmp_path / "cache" / "d2sm")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert files.private_folder(made).stat().st_mode & 0o777 == 0o700


def test_a_folder_for_the_end_of_long_work_is_made_or_refused_before(tmp_path: Path) -> None:
    assert files.ready_folder(tmp_path / "a" / "b", asked_by="--out x").is_dir()
    (tmp_path / "file").touch()
    for folder, why in ((tmp_path / "file", "is a file, not a folder"), (tmp_path / "file" / "b", "cannot be made")):
        with pytest.raises(OSError, match=f"^--out x: {re.escape(str(folder))} {why}.*; give another place$"):
            files.ready_folder(folder, asked_by="--out x")
    with pytest.raises(OSError, match=r"^--out x: /proc cannot be written to \(.+\); give another place, or make it"):
        files.ready_folder(Path("/proc"), asked_by="--out x")  # whose permissions let root in
