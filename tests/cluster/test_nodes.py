"""The file in which `d2sm cluster up` records its nodes: `down` ends processes and removes a folder by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import nodes
from cluster.cli.main import main

STATE: dict[str, Any] = {
    "mark": "d2sm-0123abcd", "address": "127.0.0.1:6379", "dashboard": "http://127.0.0.1:8265",
    "temp": "/tmp/d2sm-0123abcd-x", "nodes": 3, "sessions": [2**22 + 1], "boot": "",
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D2SM_CLUSTER", str(tmp_path / "cluster.json"))
    return tmp_path / "cluster.json"


def test_a_state_is_read_back(file: Path) -> None:
    assert nodes.read() is None
    file.write_text(json.dumps(STATE))
    found = nodes.read()
    assert found is not None and (found.temp, found.sessions) == (STATE["temp"], (2**22 + 1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temp": "/home/me"}, "temp=/home/me"),
        ({"temp": "/tmp/d2sm-0123abcd-x/../.."}, "temp="),
        ({"mark": "", "temp": "/tmp/other"}, "mark="),
        ({"sessions": ["all"]}, "sessions.0"),
        ({"nodes": None}, "nodes"),
    ],
)
def test_a_state_of_somebody_else(file: Path, change: dict[str, Any], message: str) -> None:
    file.write_text(json.dumps(STATE | change))
    for verb in (nodes.read, nodes.down):
        with pytest.raises(nodes.NodesError, match=f"^{file}: .*{message}.*remove the file"):
            verb()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("up --cpus-per-node 1.5", "--cpus-per-node: invalid int value: '1.5'"),
        ("up --cpus-per-node 0", "--cpus-per-node 0: at least one"),
        ("add --cpus 0.5", "--cpus: invalid int value: '0.5'"),
        ("add --cpus 0", "--cpus 0: at least one"),
        ("add --cpus -2", "--cpus -2: at least one"),
    ],
)
def test_a_node_has_whole_cpus(words: str, message: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray takes no others."""
    try:
        code = main(["cluster", *words.split()])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1 and not file.exists()


@pytest.fixture
def head(file: Path) -> Iterator[nodes.State]:
    """A cluster whose head is a process that answers nothing, so that no node can join it."""
    mark = "d2sm-0123abcd"
    temp = tempfile.mkdtemp(prefix=f"{mark}-", dir="/tmp")
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    leader = subprocess.Popen(
        words, env=os.environ | {nodes.MARK: mark}, stdout=subprocess.PIPE, start_new_session=True
    )
    (leader.stdout or pytest.fail()).readline()
    yield nodes._written(nodes.State(mark, "127.0.0.1:9", "http://127.0.0.1:9", temp, 1, (leader.pid,), nodes._boot()))
    leader.kill()
    leader.communicate()
    nodes.down()


def test_a_node_that_does_not_join_is_ended_and_not_counted(
    head: nodes.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_PATIENCE", 1.0)
    monkeypatch.setenv("HOME", str(tmp_path))  # whose token is nobody's
    with pytest.raises(nodes.NodesError, match="did not start: the new node not ready after 1 s"):
        nodes.add(cpus=1)
    assert nodes.read() == head
    assert [process.pid for process in nodes.ours(head)] == list(head.sessions)


def test_each_try_has_a_folder_of_its_own_for_this_user_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try's is removed, so the second must not take one of its name that somebody made meanwhile."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nstat -c "%a %n" "$PWD" >> {tmp_path}/seen\n')  # in place of Ray, which ends at once
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("HOME", str(tmp_path))  # whose token is nobody's
    with pytest.raises(nodes.NodesError, match="did not start: node 0 ended"):
        nodes.up(1, port=0, dashboard_port=0)
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert [mode for mode, _ in seen] == ["700", "700"]
    assert len({folder for _, folder in seen}) == 2 and not any(Path(folder).exists() for _, folder in seen)
