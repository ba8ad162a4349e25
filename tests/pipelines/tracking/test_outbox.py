"""The records that an earlier process could not send, read from a folder that a stranger may have made."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines.tracking.outbox import REFUSED, REFUSED_FILES, STAGED, UNSENT, Item, Outbox, Refused
from pipelines.tracking.store import TrackingError


def read(folder: Path, *lines: str, ended: bool = False) -> list[Item]:
    """What an outbox that reads these lines has to send."""
    (folder / UNSENT).write_text("".join(f"{line}\n" for line in lines))

    def send(_: list[Item]) -> None:
        raise ConnectionError

    outbox = Outbox(send, folder, ended=ended, every=60)
    waiting = outbox.waiting
    outbox.close(0)
    return waiting


def artifact(path: Path) -> str:
    return json.dumps({"kind": "artifact", "path": str(path), "folder": ""})


def test_records_are_read_back(tmp_path: Path) -> None:
    metric = {"kind": "metric", "key": "loss", "value": 0.5, "step": 3, "timestamp": 10**12}
    tag = {"kind": "tag", "key": "a", "value": "b"}
    status = {"kind": "status", "value": "FINISHED"}
    assert read(tmp_path, *map(json.dumps, (metric, tag, status))) == [metric, tag]
    assert read(tmp_path, *map(json.dumps, (metric, tag, status)), ended=True) == [metric, tag, status]


def test_a_staged_file_is_found_where_the_run_was_moved_to(tmp_path: Path) -> None:
    copy = tmp_path / STAGED / "1" / "config.yaml"
    copy.parent.mkdir(parents=True)
    copy.touch()
    (item,) = read(tmp_path, artifact(Path("/elsewhere/run") / STAGED / "1" / "config.yaml"))
    assert item["path"] == str(copy)


def test_nothing_outside_the_folder_is_sent_or_removed(tmp_path: Path) -> None:
    """The folder of a file is removed once the file is sent."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    run = tmp_path / "run"
    (run / STAGED / "2").mkdir(parents=True)
    (run / STAGED / "1").symlink_to(private)
    (run / STAGED / "2" / "key").symlink_to(private / "key")
    for number in ("1", "2"):
        with pytest.raises(TrackingError, match=rf"{run / UNSENT}: .*/{number}/key is none of the files in .*remove"):
            read(run, artifact(run / STAGED / number / "key"))
    with pytest.raises(TrackingError, match="none of the files"):
        read(run, artifact(Path("..") / "key"))
    (item,) = read(run, artifact(private / "key"))  # taken for a staged file that is gone
    assert item["path"] == str(run / STAGED / "private" / "key")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "valid dictionary"),
        ("{}", "discriminator"),
        ('{"kind": "other"}', "kind"),
        ('{"kind": "tag", "key": 3}', r"tag\.key"),
    ],
)
def test_a_damaged_line(tmp_path: Path, line: str, message: str) -> None:
    tag = json.dumps({"kind": "tag", "key": "a", "value": "b"})
    with pytest.raises(TrackingError, match=f"{tmp_path / UNSENT}: line 2: .*{message}.*remove the file") as error:
        read(tmp_path, tag, line)
    assert "\n" not in str(error.value)


def test_what_can_neither_be_sent_nor_kept_is_said_once_and_is_lost_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk; a folder in the file's place fails in the same way."""
    tried = threading.Event()
    attempts: list[int] = []

    def send(batch: list[Item]) -> None:
        attempts.append(len(batch))
        if len(attempts) == 3:
            tried.set()
        raise ConnectionError("the store is away")

    outbox = Outbox(send, tmp_path, every=0.02)
    (tmp_path / UNSENT / "in the way").mkdir(parents=True)
    outbox.put([{"kind": "tag", "key": "a", "value": "b"}])
    assert tried.wait(10)
    assert outbox.close(0) == 1
    kept, lost = caplog.messages
    assert kept.startswith(f"{tmp_path / UNSENT}: ") and kept.endswith("is kept in memory only")
    assert lost == "1 records could not be sent to MLflow (the store is away) and are lost"


def test_a_file_that_cannot_be_sent_holds_nothing_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As without credentials for the store of artifacts; files keep their order among each other."""
    sent: list[Item] = []
    allowed = threading.Event()

    def send(batch: list[Item]) -> None:
        if batch[0]["kind"] == "artifact" and not allowed.is_set():
            raise RuntimeError("no credentials")
        sent.extend(batch)

    outbox = Outbox(send, tmp_path, every=0.02)
    copies = [outbox.stage(name) for name in ("a.txt", "b.txt")]
    for copy in copies:
        copy.touch()
    files: list[Item] = [{"kind": "artifact", "path": str(copy), "folder": ""} for copy in copies]
    first: list[Item] = [{"kind": "tag", "key": f"first{number}", "value": "x"} for number in range(3)]
    then: list[Item] = [{"kind": "tag", "key": "then", "value": "x"}, {"kind": "status", "value": "FINISHED"}]
    outbox.put([files[0], *first, files[1]])
    assert not outbox.flush(0.5)
    outbox.put(then)
    assert not outbox.flush(0.5)
    assert sent == [*first, *then] and outbox.waiting == files
    assert caplog.messages == ["MLflow does not take a file, which is kept and sent again: no credentials"]
    allowed.set()
    assert outbox.flush(10) and sent[-2:] == files
    assert outbox.close(1) == 0 and not any(copy.exists() for copy in copies) and not (tmp_path / UNSENT).exists()


def test_what_is_refused_is_kept_aside_and_not_sent_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was sent with it is taken; and once the server takes it, the file can be renamed."""
    sent: list[Item] = []

    def send(batch: list[Item]) -> None:
        if any(item.get("key") == "bad" or item["kind"] == "artifact" for item in batch):
            raise Refused("too long")
        sent.extend(batch)

    outbox = Outbox(send, tmp_path, every=60)
    copy = outbox.stage("a.txt")
    copy.write_text("text")
    tags = [{"kind": "tag", "key": key, "value": "x"} for key in (*"abcdefg", "bad", "h")]
    outbox.put([*tags, {"kind": "artifact", "path": str(copy), "folder": ""}, {"kind": "status", "value": "FINISHED"}])
    assert outbox.close(10) == 0
    assert [item.get("key", item.get("value")) for item in sent] == [*"abcdefgh", "FINISHED"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [REFUSED_FILES, REFUSED]
    assert caplog.messages == ["MLflow refuses records, which are kept: too long"]
    assert outbox.refused.startswith(f"MLflow refused 2 records (too long); they are in {tmp_path / REFUSED} ")
    again = Outbox(send, tmp_path, every=60)
    assert again.waiting == [] and again.close(0) == 0 and again.refused == ""
    (tmp_path / REFUSED).rename(tmp_path / UNSENT)
    (tmp_path / REFUSED_FILES).rename(tmp_path / STAGED)
    taken = Outbox(sent.extend, tmp_path, every=60)
    assert taken.close(10) == 0 and not list(tmp_path.iterdir())
    assert [item.get("key", item.get("path")) for item in sent[-2:]] == ["bad", str(copy)]


def test_a_copy_is_removed_once_the_file_no_longer_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be killed at any moment: what the file names can still be sent."""
    copies = [tmp_path / STAGED / str(number) / "a.txt" for number in range(3)]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        copy.touch()
    (tmp_path / UNSENT).write_text("".join(f"{artifact(copy)}\n" for copy in copies))
    seen: list[tuple[list[Path], list[Path]]] = []  # at each removal: the copies that are named, and those there
    rmtree = shutil.rmtree

    def removed(folder: Path, **options: Any) -> None:
        lines = (tmp_path / UNSENT).read_text().splitlines() if (tmp_path / UNSENT).exists() else []
        seen.append(([Path(json.loads(line)["path"]) for line in lines], [copy for copy in copies if copy.exists()]))
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", removed)
    outbox = Outbox(lambda _: None, tmp_path, every=60)
    assert outbox.flush(10)
    assert outbox.close(1) == 0 and not any(copy.exists() for copy in copies)
    assert [named for named, _ in seen[:3]] == [copies[1:], copies[2:], []]
    assert all(set(named) <= set(there) for named, there in seen)
