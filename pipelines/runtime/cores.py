"""The CPUs that Ray on this machine is started with."""

from __future__ import annotations

import math
import os


def logical_cpus(reserved: float) -> int:
    """As many as will be reserved, from the number of cores up to twice that.

    A reservation is only a number: ingest and training take turns.
    """
    cores = os.cpu_count() or 1
    return max(cores, min(math.ceil(reserved), 2 * cores))
