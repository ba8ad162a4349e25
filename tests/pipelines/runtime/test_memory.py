"""Free memory: of this machine, and of the control groups that a container or scheduler put us in."""

from __future__ import annotations

import torch

from pipelines.runtime import memory


def test_the_memory_of_this_machine() -> None:
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**50


def group(folder, limit: str, usage: int, cache: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, usage)):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"inactive_file {cache}\ntotal_inactive_file {cache}\n")


def test_the_limit_of_a_control_group(tmp_path) -> None:
    assert memory.group_free(tmp_path, "0::/user/job\n") == []
    group(tmp_path / "user", "max", 900, 0, 2)
    assert memory.group_free(tmp_path, "0::/user/job\n") == []
    group(tmp_path, "1000", 900, 300, 2)  # that of a container, whose own folders it does not see
    group(tmp_path / "user" / "job", "500", 100, 0, 2)
    assert sorted(memory.group_free(tmp_path, "0::/user/job\n")) == [400, 400]
    group(tmp_path / "memory" / "box", "2000", 1990, 5, 1)
    text = "9:name=systemd:/\n4:memory:/box\n3:cpuset,cpu:/\n0::/elsewhere\n"
    assert sorted(memory.group_free(tmp_path, text)) == [15, 400]
    assert memory.group_free(tmp_path, "") == []
