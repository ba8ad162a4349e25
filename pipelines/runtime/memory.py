"""Free memory of this machine, within the limits of a container or scheduler (control groups), and of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_ROOT, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of control groups in version 2 and 1: folder below the root, limit, usage, and the name of the cache in memory.stat.
_VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a device now; the caches of the system and of torch count as free."""
    if device.type == "cuda":
        import torch  # here, because tasks that decode images ask for the memory of the machine and need no torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_ram()


def free_ram() -> int:
    """Bytes that can be allocated in this machine's memory now; the system's caches count as free."""
    return min(psutil.virtual_memory().available, *group_free(_ROOT, _membership()))


def group_free(root: Path, membership: str) -> list[int]:
    """Bytes that each control group of this process still allows; empty if none has a limit.

    Args:
        root: where control groups are mounted.
        membership: the text of /proc/self/cgroup. In a container it may name folders that are not visible there, while
            the container's own limit is at the root; so every folder on the way up is read.
    """
    found = []
    for (below, *files), path in zip(_VERSIONS, _paths(membership)):
        if path is None:
            continue
        at = root / below / path.strip("/")
        for folder in (at, *at.parents):
            if folder.is_relative_to(root):
                found += _free(folder, *files)
    return found


def _paths(membership: str) -> tuple[str | None, str | None]:
    """The folder of this process in version 2, and that of version 1's memory controller."""
    two = one = None
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        two = path if not controllers else two
        one = path if "memory" in controllers.split(",") else one
    return two, one


def _free(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [] if most == "max" else [max(0, int(most) - used + int(stat.get(cache, 0)))]


def _membership() -> str:
    try:
        return _MEMBERSHIP.read_text()
    except OSError:  # not Linux
        return ""


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is the error of torch, or of Python, for too little memory on the CPU or on a GPU."""
    import torch  # here, as above

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
