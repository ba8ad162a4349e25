"""The file in which `d2sm cluster up` records its nodes: `down` ends processes and removes a folder by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import nodes

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
