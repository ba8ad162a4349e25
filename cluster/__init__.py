"""Launching: the command line and clusters.

import cluster

job = cluster.submit(["train", "--recipe", "ffdnet_d2sm_cpu", "data.root=/data", "train.storage=/storage"])
job.follow()

The names are imported when they are first used: the command line's help loads nothing that they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.jobs import Job, submit

__all__ = ["Job", "submit"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cluster import jobs

        return getattr(jobs, name)
    raise AttributeError(f"module 'cluster' has no attribute {name!r}")
