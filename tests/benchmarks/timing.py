"""How every benchmark here measures: side by side in one process, interleaved, medians; and on which machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

GOALS = "D2SM_BENCH_GOALS"  # names the file in which `make bench` collects what `goal` keeps
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"  # photographs beside the checkout, where there are any


def machine(device: torch.device) -> str:
    """Processor, cores used, load and versions, in a line for above the table."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"]
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        parts.insert(0, f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)")
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return ", ".join([*parts, f"torch {torch.__version__}", load])


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """Of this process and all below it, those that ended included."""
    import psutil

    total = 0.0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user, system, and those of children that ended
    return total


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    budget: float = 60.0,
    often: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Median seconds of each step.

    Args:
        steps: what to call, by name. Each is called once unmeasured, then once in each round, in turn, so that a
            change in the machine's load meets all alike.
        rounds: at most so many; fewer (but at least 3) once `budget` seconds are spent.
        often: how many times in a round, for those that are short beside the others.
    """
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    start = time.perf_counter()
    for index in range(rounds):
        for name, step in steps.items():
            taken[name] += [seconds(step, device) for _ in range((often or {}).get(name, 1))]
        if index >= 2 and time.perf_counter() - start > budget:
            break
    return {name: median(times) for name, times in taken.items()}


def goal(what: str, ratios: Sequence[float], *, least: float | None = None) -> None:
    """Keep what was measured for the table with which `make bench` ends; a benchmark run alone shows its own.

    Args:
        what: is compared with what.
        ratios: of every round.
        least: that the median should reach; None: it is stated, not asked for.
    """
    if path := os.environ.get(GOALS):
        row = {"what": what, "ratios": [float(ratio) for ratio in ratios], "least": least}
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; numbers to the right, the first column to the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(value: float | None) -> str:
    return "" if value is None else f"{value * 1e3:.3g}" if value < 1 else f"{value * 1e3:.0f}"
