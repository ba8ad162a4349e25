"""What is said of a configuration and a cluster before training starts."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config import Config
from pipelines.runtime import resources


@pytest.mark.parametrize(
    "nodes, changes, workers",
    [
        ([2], {"num_workers": 2, "cpus_per_worker": 0.5}, None),
        ([4], {"num_workers": 2, "threads": 2}, 2),  # Ray was told of 4 CPUs on a machine of 2 cores
        ([4], {"num_workers": 1, "threads": 2}, None),
        ([4], {"num_workers": 2, "threads": 2, "use_gpu": True}, None),
        ([4, 4], {"num_workers": 8, "threads": 2}, 4),  # as many as a node holds
        ([4, 4], {"num_workers": 8, "threads": 2, "cpus_per_worker": 2}, None),
    ],
)
def test_more_threads_than_cores(
    nodes: list[int], changes: dict[str, Any], workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    said = resources.oversubscribed(Config().replace({f"train.{key}": value for key, value in changes.items()}))
    if workers is None:
        assert said is None
    else:
        cores = 2 if len(nodes) == 1 else 4
        assert said == (
            f"train.threads=2: {workers} workers on a node of {cores} cores get in each other's way; lower it, or "
            "train.num_workers"
        )
