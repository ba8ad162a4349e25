"""The list of jobs, most important first: what is left when the time is up is the least important."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

TASKS = ("noise50", "sr4")
# Ratios of gradient lengths, weak to strong. The first run chose the second and third from the PSNR that the one before
# had cost; they are fixed here so that every run has the same ones. The front of "d2sm_whole" came later: not run yet.
RATIOS: dict[str, dict[str, tuple[float, float, float]]] = {
    "noise50": {
        "d2sm_patches": (3, 12, 30),
        "perceptual": (1, 6, 24),
        "task_d2sm": (2, 12, 30),
        "temperature": (2, 8, 20),
        "cross_entropy": (0.5, 3, 12),
        "task_perceptual": (1, 6, 24),
        "d2sm_whole": (4, 12, 30),
    },
    "sr4": {
        "d2sm_patches": (3, 12, 30),
        "perceptual": (1, 6, 15),
        "task_d2sm": (2, 12, 48),
        "temperature": (2, 12, 30),
        "cross_entropy": (0.5, 3, 18),
        "task_perceptual": (1, 6, 36),
        "d2sm_whole": (4, 12, 30),
    },
}
EARLY_WEIGHTS = {"l1": 0.0, "d2sm_whole": 10.0}


@dataclass(frozen=True)
class Job:
    """One result.

    Attributes:
        id: unique; the name of its file.
        kind: "train"; "gradients" (of all objectives at a start network); "baseline" (evaluate without training).
        task: "noise<sigma>", "sr<factor>" or "clean".
        start: "published" weights, the id of the training whose weights it starts from, or None: FFDNet's own
            initialisation, and for a baseline no network.
        ratio: of the objective's gradient length to that of L1, which determines the weight; None: `weight` is given.
        network: FFDNet's width and depth.
        batch, side: crops in a step, and their side in pixels.
        cosine: whether the learning rate falls to 0 along a cosine after `warmup` steps.
        ema: decay of the averaged weights, which are evaluated.
        clip: largest norm of the gradient; None: not clipped.
        evaluate_at: steps at which the network is also evaluated.
    """

    id: str
    kind: Literal["train", "gradients", "baseline"]
    task: str
    objective: str = "l1"
    seed: int = 0
    start: str | None = None
    ratio: float | None = None
    weight: float | None = None
    network: tuple[int, int] = (96, 12)
    batch: int = 8
    side: int = 192
    steps: int = 1000
    lr: float = 3e-4
    warmup: int = 30
    cosine: bool = True
    ema: float = 0.995
    clip: float | None = None
    evaluate_at: tuple[int, ...] = ()


def front_job(task: str, objective: str, position: int, seed: int) -> Job:
    """A training of a front, by the position of its ratio."""
    ratio = RATIOS[task][objective][position]
    name = f"{task}-{objective}-r{ratio:g}-s{seed}"
    return Job(name, "train", task, objective, seed, f"start-{task}", ratio)


def jobs(dry: bool = False) -> list[Job]:
    """All jobs in order. dry: the same list with tiny networks and crops, 3 steps each, to try the code."""
    made = [
        Job("start-sr4", "train", "sr4", seed=100, start="published", steps=3000),
        Job("start-noise50", "train", "noise50", seed=100, start="published", steps=2000),
        Job("baseline-degraded-noise50", "baseline", "noise50"),
        Job("baseline-degraded-sr4", "baseline", "sr4"),
        Job("baseline-clean", "baseline", "clean"),
        Job("baseline-published-noise50", "baseline", "noise50", start="published"),
    ]

    def early(seeds: range) -> None:
        options = Job(
            "", "train", "noise50", network=(32, 8), batch=32, side=128, steps=1600, lr=1e-3, warmup=50, cosine=False,
            ema=0.99, clip=1.0, evaluate_at=(50, 100, 200, 400, 800),
        )  # fmt: skip
        for seed in seeds:
            for name, weight in EARLY_WEIGHTS.items():
                made.append(replace(options, id=f"early-{name}-s{seed}", objective=name, seed=seed, weight=weight))

    def l1(seed: int) -> None:
        made.extend(Job(f"{task}-l1-s{seed}", "train", task, "l1", seed, f"start-{task}") for task in TASKS)

    def fronts(position: int, seed: int) -> None:
        made.extend(front_job(task, name, position, seed) for task in TASKS for name in RATIOS[task])

    early(range(2))
    made.extend(Job(f"gradients-{task}", "gradients", task, start=f"start-{task}") for task in TASKS)
    l1(0)
    fronts(0, seed=0)
    fronts(1, seed=0)
    l1(1)
    fronts(2, seed=0)
    for position in range(3):
        fronts(position, seed=1)
    early(range(2, 5))
    return [tiny(job) for job in made] if dry else made


def tiny(job: Job) -> Job:
    """A job of a second on a CPU, from an untrained start."""
    start = None if job.start == "published" else job.start
    evaluate_at = job.evaluate_at and (2,)
    return replace(job, start=start, network=(8, 12), batch=2, side=64, steps=3, evaluate_at=evaluate_at)
