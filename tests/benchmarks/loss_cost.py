"""What a step of StatisticsMatching costs beside the full recomputation, forward and backward, D = 8192, N = 8.

    python -m tests.benchmarks.loss_cost [--device cuda] [--queues 64 256 1024 4096 16384] [--quick]

The full recomputation is `tests.helpers.reference.differentiable`: both whole kernel matrices in float32, left to
autograd, the new rows carrying the graph. The queues of both are full before the clock starts. Set OMP_NUM_THREADS for
the cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from d2sm import StatisticsMatching
from d2sm.divergence import Divergence
from d2sm.features import features
from tests.benchmarks.timing import interleaved, machine, ms, seconds, table
from tests.helpers.reference import differentiable

N, D = 8, 8192
VGG_CROP = 64  # conv5_4 of a 64 x 64 crop is 512 x 4 x 4 = D numbers
LARGEST_FULL = 4096  # the full form keeps about 15 matrices of q x q: 1 GiB each at 16384
LARGEST_JSD = 4096  # our own JSD keeps two in float64
Step = Callable[[], Tensor]


def new_rows(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    clean = torch.randn(count, D, device=device)
    return clean + 0.3 * torch.randn_like(clean), clean


def ours(q: int, divergence: Divergence, device: torch.device) -> Step:
    matching = StatisticsMatching(q, divergence)
    for start in range(0, q, 256):
        restored, clean = new_rows(min(256, q - start), device)
        matching(restored=restored, clean=clean)
    restored, clean = new_rows(N, device)
    restored.requires_grad_()

    def step() -> Tensor:
        value: Tensor = matching(restored=restored, clean=clean)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return step


def full(q: int, divergence: Divergence, device: torch.device) -> Step:
    (x, y), (restored, clean) = new_rows(q, device), new_rows(N, device)
    restored.requires_grad_()

    def step() -> Tensor:
        nonlocal x, y
        queue_x, queue_y = torch.cat([x[N:], restored]), torch.cat([y[N:], clean])
        value = differentiable(queue_x, queue_y, divergence) / q
        value.backward()  # type: ignore[no-untyped-call]
        x, y = queue_x.detach(), queue_y
        return value.detach()

    return step


def measure(q: int, divergence: Divergence, device: torch.device, rounds: int) -> tuple[float, float | None]:
    """Median seconds a step: ours, and the full recomputation where it fits."""
    steps = {"ours": ours(q, divergence, device)}
    if q <= LARGEST_FULL:
        steps["full"] = full(q, divergence, device)
    median = interleaved(steps, device, rounds=rounds, budget=20, often={"ours": 5})
    return median["ours"], median.get("full")


def peak(make: Callable[[], Step], device: torch.device) -> float:
    """MiB that a step needs at most beside what it keeps."""
    step = make()
    step()
    torch.cuda.synchronize(device)
    kept = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - kept) / 2**20


def row(q: int, divergence: Divergence, device: torch.device, rounds: int) -> tuple[float, list[str]]:
    our, whole = measure(q, divergence, device, rounds)
    cells = [divergence, str(q), ms(our), ms(whole) or "left out", f"{whole / our:.0f}x" if whole else ""]
    if device.type == "cuda":
        cells.append(f"{peak(lambda: ours(q, divergence, device), device):.0f}")
        cells.append(f"{peak(lambda: full(q, divergence, device), device):.0f}" if whole else "")
    return our, cells


def vgg_forward(device: torch.device) -> float:
    phi = features("vgg19.conv5_4", weights="random").to(device)
    images = torch.rand(N, 3, VGG_CROP, VGG_CROP, device=device)
    with torch.no_grad():
        phi(images)
        return sorted(seconds(lambda: phi(images), device) for _ in range(7))[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--queues", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--divergences", nargs="+", default=["kl", "inverse_kl", "jsd"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds, no queue above 1024")
    args = parser.parse_args()
    device, rounds = torch.device(args.device), 3 if args.quick else args.rounds
    queues = [q for q in args.queues if not args.quick or q <= 1024]
    torch.manual_seed(0)

    print(f"{machine(device)}; D = {D}, N = {N}, float32, forward and backward, medians\n")
    rows, cost = [], {}
    for divergence in args.divergences:
        for q in queues:
            if divergence != "jsd" or q <= LARGEST_JSD:
                cost[divergence, q], cells = row(q, divergence, device, rounds)
                rows.append(cells)
    memory = ["ours: peak MiB", "full: peak MiB"] if device.type == "cuda" else []
    print(table(["divergence", "q", "ours, ms", "full recomputation, ms", "ratio", *memory], rows))
    print(
        f"\nLeft out, as q x q matrices need too much memory: full recomputation above q = {LARGEST_FULL}, JSD above "
        f"{LARGEST_JSD}."
    )
    if {("kl", 1024), ("kl", 4096)} <= cost.keys():
        print(f"cost(4096) / cost(1024), kl: {cost['kl', 4096] / cost['kl', 1024]:.2f}")
    forward = vgg_forward(device)
    cheaper = [q for (divergence, q), time in cost.items() if divergence == "kl" and time < forward]
    print(
        f"VGG-19 conv5_4 forward of {N} crops {VGG_CROP} x {VGG_CROP}: {ms(forward)} ms; largest q measured whose "
        f"step (kl) costs less: {max(cheaper, default='none')}"
    )


if __name__ == "__main__":
    main()
