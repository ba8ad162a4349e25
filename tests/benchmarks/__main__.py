"""`make bench`: every measurement, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

for name in (
    "loss_cost",
    "loss_share",
    "communication",
    "noise_place",
    "ingest",
    "evaluation",
    "training",
    "step_parts",
    "memory",
    "startup",
):
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=True)
