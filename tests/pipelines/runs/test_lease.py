"""A run at a URI has one owner at a time, as far as an object store allows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.runs import lease, storage
from pipelines.runtime.owner import InUseError


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, seconds in (("BEAT", 0.1), ("PATIENCE", 0.6), ("SETTLE", 0.02)):
        monkeypatch.setattr(lease, name, seconds)


@contextmanager
def machine(place: str, folder: Path) -> Iterator[None]:
    """Own the run as a machine does whose copy is this folder."""
    folder.mkdir(exist_ok=True)
    with lease.leased(place, folder, remedy="choose another train.name"):
        yield


def found(place: str) -> str | None:
    return storage.read_object(place, lease.OBJECT)


def test_another_machine_is_told_who_owns_it(tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/run"
    with machine(place, tmp_path / "a"):
        owner = json.loads(found(place) or "")
        with pytest.raises(InUseError) as error, machine(place, tmp_path / "b"):
            pass
        assert str(error.value) == (
            f"{place}: is in use by process {owner['pid']} on {owner['host']} since {owner['since']}; "
            "choose another train.name"
        )
        assert json.loads(found(place) or "")["id"] == owner["id"]
    assert found(place) is None
    with machine(place, tmp_path / "b"):
        pass


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By another machine once it has shown no sign of life; by the same one at once, since the copy's lock was free."""
    place = f"memory://{tmp_path.name}/run"
    left = json.dumps({"pid": 1, "host": "gone", "since": "then", "id": "abc", "beat": 7})
    storage.write_object(place, lease.OBJECT, left)
    with machine(place, tmp_path / "b"):
        assert json.loads(found(place) or "")["id"] != "abc"
    assert caplog.messages == [f"{place}: has an owner; waiting at most 1 s for a sign of life"]
    caplog.clear()
    storage.write_object(place, lease.OBJECT, left)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / lease.HELD).write_text("abc")
    with machine(place, tmp_path / "c"):
        assert json.loads(found(place) or "")["id"] != "abc"
    assert not caplog.messages


def test_two_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 0.3)
    place, go, ended = f"memory://{tmp_path.name}/run", threading.Event(), threading.Barrier(2)
    said: list[str] = []

    def start(name: str) -> None:
        with ExitStack() as stack:
            go.wait(10)
            try:
                stack.enter_context(machine(place, tmp_path / name))
                said.append("owns")
            except InUseError:
                said.append("told")
            ended.wait(10)

    threads = [threading.Thread(target=start, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["owns", "told"]


def test_one_that_lost_its_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place, said = f"memory://{tmp_path.name}/run", threading.Event()
    other = json.dumps({"pid": 2, "host": "other", "since": "now", "id": "def", "beat": 0})
    with machine(place, tmp_path / "a"):
        storage.write_object(place, lease.OBJECT, other)
        said.wait(0.5)
    assert caplog.messages == [f"{place}: is in use by process 2 on other since now; end one of the two"]
    assert found(place) == other


class Away(MemoryFileSystem):  # type: ignore[misc]
    """A file system that for a while raises what is no OSError when it is opened."""

    protocol = "away"
    cachable = False
    answers = True
    asked = threading.Event()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.answers:
            self.asked.set()
            raise ValueError("no answer")


def test_the_heartbeat_goes_on_after_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("away", Away, clobber=True)
    place = f"away://{tmp_path.name}/run"

    def beats() -> int:
        return int(json.loads(found(place) or "")["beat"])

    with machine(place, tmp_path / "a"):
        with monkeypatch.context() as patch:
            patch.setattr(Away, "answers", False)
            assert Away.asked.wait(10)
        before, end = beats(), time.monotonic() + 10
        while beats() <= before and time.monotonic() < end:
            time.sleep(0.02)
        assert beats() > before
