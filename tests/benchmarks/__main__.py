"""`make bench`: every measurement, one after the other, each in a process of its own, and what became of the goals.

    python -m tests.benchmarks [NAME ...]

Half an hour on two cores; with names, only these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.timing import GOALS, table

NAMES = (
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
)


def row(what: str, ratios: list[float], least: float | None) -> list[str]:
    """A goal, what was measured, and whether that is enough."""
    middle = median(ratios)
    met = "" if least is None else "yes" if middle >= least else "NO"
    asked = "stated" if least is None else f"{least:g}x"
    return [what, asked, f"{middle:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})", met]


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in NAMES]:
        print(f"no benchmark is called {unknown[0]}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = []
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as folder:
        kept = Path(folder) / "goals"
        kept.touch()
        for name in names or NAMES:
            print(f"\n## {name}\n", flush=True)
            start = time.monotonic()
            call = [sys.executable, "-m", f"tests.benchmarks.{name}"]
            if subprocess.run(call, env=os.environ | {GOALS: str(kept)}, check=False).returncode:
                failed.append(name)
            print(f"\n({time.monotonic() - start:.0f} s)", flush=True)
        goals: list[dict[str, Any]] = [json.loads(line) for line in kept.read_text().splitlines()]
    if goals:
        print("\n## goals\n")
        print(table(["", "at least", "median (smallest to largest)", "met"], [row(**one) for one in goals]))
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
