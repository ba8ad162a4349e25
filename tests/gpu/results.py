"""What `python -m tests.gpu` measured: one JSON line a number, written as it comes, and the tables made of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.timing import table

FILE = "D2SM_GPU_RESULTS"  # the environment variable that names the file


@dataclass(frozen=True)
class Goal:
    """What a number should be.

    Attributes:
        limit: at most so much, or at least if `at_least`.
        before: what was measured on an H200 at commit 57e4321; None: nothing.
    """

    limit: float
    at_least: bool = False
    before: float | None = None

    def met(self, value: float) -> bool:
        """Whether a measured value reaches the goal."""
        return value >= self.limit if self.at_least else value <= self.limit


# By the name of the number. The units are those of the names.
GOALS: dict[str, Goal] = {
    "ffdnet_d2sm_gpu: step, ms": Goal(15, before=24.0),
    "ffdnet_d2sm_gpu: of the best rate, %": Goal(30, at_least=True, before=19),
    "ffdnet_d2sm_gpu: matching, ms": Goal(1.5, before=6.9),
    "ffdnet_d2sm_gpu, train.cuda_graphs: step, ms": Goal(15),
    "ffdnet_d2sm_internal_gpu: step, ms": Goal(14, before=20.6),
    "ffdnet_d2sm_internal_gpu, train.cuda_graphs: step, ms": Goal(14),
    "ffdnet_d2sm_internal_gpu: matching, ms": Goal(1, before=3.3),
    "N 512, D 8192, q 16384: matching, ms": Goal(4, before=16.5),
    "D2SM over perceptual, Lite0": Goal(1.10, before=1.17),
    "D2SM over perceptual, VGG-19": Goal(1.10, before=1.29),
    "evaluate, 51 photographs at 3 levels, actors 0: s": Goal(10, before=30),
    "evaluate, 51 photographs at 3 levels, actors 1: s": Goal(10, before=48),
    "evaluate, 51 photographs at 3 levels, 4 actors on a quarter of the GPU each: s": Goal(10, before=37),
    "Ray Train to a plain loop, steps a second": Goal(0.97, at_least=True),
    "without workers to a plain loop, steps a second": Goal(0.97, at_least=True),
    "from the command to step 20, s": Goal(22, before=44),
    "from the command to step 20 without workers, s": Goal(22),
}


@dataclass(frozen=True)
class Number:
    """One measured number, under the name of its part."""

    part: str
    what: str
    value: float


def record(part: str, what: str, value: float) -> None:
    """Print a number, and keep it in the file of the run."""
    number = Number(part, what, float(value))
    print(f"{what}: {number.value:.4g}", flush=True)
    if path := os.environ.get(FILE):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(number)) + "\n")


def read(path: Path) -> list[Number]:
    """The numbers kept so far."""
    return [Number(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def goals(numbers: list[Number], *, small: bool = False) -> str:
    """The table of goals; small sizes meet and miss none."""
    found = {number.what: number.value for number in numbers}
    rows = []
    for what, goal in GOALS.items():
        value = found.get(what)
        rows.append(
            [
                what,
                "" if goal.before is None else f"{goal.before:g}",
                f"{'>=' if goal.at_least else '<='} {goal.limit:g}",
                "not measured" if value is None else f"{value:.4g}",
                "" if value is None or small else "yes" if goal.met(value) else "NO",
            ]
        )
    return table(["", "H200 at 57e4321", "goal", "here", "met"], rows)


def page(about: str, numbers: list[Number], outcomes: dict[str, str], *, small: bool = False) -> str:
    """gpu.md: the goals, then every number by part, and how each part ended."""
    parts = [
        f"## {part}: {outcome}\n\n"
        + table(["", ""], [[one.what, f"{one.value:.4g}"] for one in numbers if one.part == part])
        for part, outcome in outcomes.items()
    ]
    return "\n\n".join([f"# {about}", "## Goals", goals(numbers, small=small), *parts]) + "\n"
