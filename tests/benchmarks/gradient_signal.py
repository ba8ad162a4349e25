"""How much of D2SM's gradient survives the average over batches, and where it points, by kernel, samples and queue.

    python -m tests.benchmarks.gradient_signal --data ../shared/data [--task sr4] [--steps 400] [--batches 24]

No objective is trained. A small FFDNet is trained with L1, queues are filled, and the gradients by its parameters are
taken over batches that are the same for every variant. |E g|^2 / E |g|^2 is the part of a batch's gradient that all
batches have in common; the rest is noise of the batch. Products of expectations are estimated without bias, from pairs
of different batches, as are the cosines between them; intervals leave out one batch at a time (jackknife). The
networks that look at the crops are those of `tests.benchmarks.fronts`.

The class-aware variants are prototypes that need labels. Each matches n x n similarities, with `allowed` pairs alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from d2sm.divergence import Kernel
from d2sm.features import features, patches
from d2sm.matching import StatisticsMatching
from d2sm.models import FFDNet
from d2sm.objectives import CrossEntropy
from tests.benchmarks.fronts.data import CLASSES, VOID, Batches, read_photographs
from tests.benchmarks.fronts.networks import PHI, Segmenter
from tests.benchmarks.timing import machine, table

BATCH, SIDE = 16, 96
FILL = 64  # batches before the first that counts
EARLIER = 100  # steps by which the network that fills a stale queue is behind
Allowed = Callable[[Tensor, Tensor], Tensor]  # classes (n,), places in the queue (n,) -> (n, n) pairs that are compared


@dataclass
class Variant:
    """D2SM as the package has it, on patches of Lite0's features; None: whole crops.

    Attributes:
        stale: fill the queue by an earlier network.
    """

    patch: int | None = 32
    queue: int = 1024
    kernel: Kernel = "cosine"
    temperature: float = 0.1
    center: bool = False
    stale: bool = False

    def __post_init__(self) -> None:
        self.matching = StatisticsMatching(
            self.queue, kernel=self.kernel, temperature=self.temperature, center=self.center
        )

    def __call__(self, restored: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Of Phi's maps."""
        return cast(Tensor, self.matching(*(samples(maps, self.patch) for maps in (restored, clean))))


@dataclass
class ClassAware:
    """The paper's kernel, with some pairs of samples left out.

    Attributes:
        allowed: which pairs are compared.
        pure: least part of a patch that has one class; a sample with less is left out.
    """

    allowed: Allowed
    pure: float = 0.0
    patch: int = 32
    queue: int = 1024
    stale: bool = False
    stored: list[Tensor] = field(default_factory=list)

    def __call__(self, restored: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        classes, part = majority(labels, self.patch)
        keep = (classes != VOID) & (part >= self.pure)
        new = [samples(maps, self.patch)[keep] for maps in (restored, clean)]
        drawn = torch.randint(0, 2**31, (len(classes),), generator=DRAWN)  # for pairs by chance
        new += [classes[keep], drawn[keep]]
        if self.stored:
            new = [torch.cat([old, x])[-self.queue :] for old, x in zip(self.stored, new, strict=True)]
        self.stored = [x.detach() for x in new]
        x, y, classes, drawn = new
        pairs = self.allowed(classes, drawn) & ~torch.eye(len(x), dtype=torch.bool)
        pairs = pairs & (pairs.sum(0) > 1)  # a column of one entry says nothing
        log_p, log_q = (log_columns(rows, pairs) for rows in (x, y))
        terms = torch.where(pairs, log_p.exp() * (log_p - log_q), 0.0)
        return terms.sum() / len(x)


def log_columns(rows: Tensor, pairs: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=1)
    k = torch.where(pairs, (unit @ unit.T + 1) / 2, 1.0)
    return k.log() - torch.where(pairs, k, 0.0).sum(0).clamp(min=1e-9).log()


def samples(maps: Tensor, patch: int | None) -> Tensor:
    return patches(maps, side=None if patch is None else patch // 16)


def majority(labels: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """(B, H, W) classes -> the most frequent class of each patch, in the order of `patches`, and its part of it."""
    counts = F.one_hot(torch.where(labels == VOID, len(CLASSES), labels).long()).movedim(-1, 1).float()
    parts = F.avg_pool2d(counts, patch)[:, : len(CLASSES)].flatten(2).transpose(1, 2).flatten(0, 1)
    part, found = parts.max(1)
    return torch.where(part > 0, found, VOID), part


DRAWN = torch.Generator().manual_seed(5)


def same(classes: Tensor, drawn: Tensor) -> Tensor:
    return classes[:, None] == classes


def other(classes: Tensor, drawn: Tensor) -> Tensor:
    return classes[:, None] != classes


def as_many_by_chance(classes: Tensor, drawn: Tensor) -> Tensor:
    """Groups of the classes' sizes, of samples drawn by chance."""
    return same(classes[drawn.argsort()], drawn)


VARIANTS: dict[str, Callable[[], Variant | ClassAware]] = {
    "paper: patches of 32, q 1024": Variant,
    "center": lambda: Variant(center=True),
    "exp, tau .3": lambda: Variant(kernel="exp", temperature=0.3),
    "exp, tau .1": lambda: Variant(kernel="exp"),
    "exp, tau .3, center": lambda: Variant(kernel="exp", temperature=0.3, center=True),
    "exp, tau .1, center": lambda: Variant(kernel="exp", center=True),
    "patches of 16": lambda: Variant(patch=16),
    "patches of 48": lambda: Variant(patch=48),
    "whole crops": lambda: Variant(patch=None),
    "whole crops, center": lambda: Variant(patch=None, center=True),
    "q 256": lambda: Variant(queue=256),
    "q 4096": lambda: Variant(queue=4096),
    "queue of the network 100 steps before": lambda: Variant(stale=True),
    "prototype: all pairs": lambda: ClassAware(lambda classes, _: torch.ones(2 * classes.shape, dtype=torch.bool)),
    "prototype: same class": lambda: ClassAware(same),
    "prototype: other class": lambda: ClassAware(other),
    "prototype: groups by chance": lambda: ClassAware(as_many_by_chance),
    "prototype: patches of one class": lambda: ClassAware(lambda c, _: torch.ones(2 * c.shape, dtype=torch.bool), 0.9),
    "prototype: patches of one class, same class": lambda: ClassAware(same, 0.9),
}
TARGETS = ("L1", "perceptual", "CE, CamVid", "CE, Cityscapes")


def start_networks(task: str, steps: int, seed: int, batches: Batches) -> tuple[FFDNet, FFDNet]:
    """FFDNet 32 x 8 after L1 training with Adam at 1e-3, cosine; and the same `EARLIER` steps before its end."""
    torch.manual_seed(seed)
    networks = FFDNet(32, 8), FFDNet(32, 8)
    optimizer = torch.optim.Adam(networks[0].parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step == max(0, steps - EARLIER):
            networks[1].load_state_dict(networks[0].state_dict())
        clean, degraded, sigma, _ = batches()
        optimizer.zero_grad()
        (networks[0](degraded, sigma) - clean).abs().mean().backward()
        optimizer.step()
        schedule.step()
    return networks


def flat(values: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def measure(data: Path, task: str, steps: int, count: int, seed: int) -> dict[str, Any]:
    """Gradients of all variants over the batches, reduced to products."""
    photographs = read_photographs(data / "camvid", torch.device("cpu"))
    network, earlier = start_networks(task, steps, seed, Batches(photographs, task, seed, BATCH, SIDE))
    phi, weights = features(PHI), data / "weights"
    camvid, cityscapes = CrossEntropy(Segmenter("camvid", weights)), Segmenter("cityscapes", weights)
    made = {name: build() for name, build in VARIANTS.items()}
    batches, parameters = Batches(photographs, task, 1000 + seed, BATCH, SIDE), list(network.parameters())

    with torch.no_grad():
        for _ in range(FILL):
            clean, degraded, sigma, labels = batches()
            of_clean, of_restored, of_earlier = phi(clean), phi(network(degraded, sigma)), phi(earlier(degraded, sigma))
            for variant in made.values():
                variant(of_earlier if variant.stale else of_restored, of_clean, labels)

    names = [*TARGETS, *made]
    rows: list[list[Tensor]] = [[] for _ in names]
    by_image = torch.zeros(len(names), dtype=torch.float64)
    for _ in range(count):
        clean, degraded, sigma, labels = batches()
        restored = network(degraded, sigma)
        x = restored.detach().requires_grad_()
        with torch.no_grad():
            of_clean = phi(clean)
            wanted = cityscapes(clean).max(1).indices
        of_restored = phi(x)
        losses = [
            (x - clean).abs().mean(),
            F.mse_loss(of_restored, of_clean),
            camvid(x, clean, labels=labels),
            F.cross_entropy(cityscapes(x), wanted),
            *(variant(of_restored, of_clean, labels) for variant in made.values()),
        ]
        for index, loss in enumerate(losses):
            (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
            by_image[index] += gradient.double().square().sum() / count
            rows[index].append(flat(torch.autograd.grad(restored, parameters, gradient, retain_graph=True)))
    stacked = torch.stack([torch.stack(of_one) for of_one in rows]).double()  # (K, batches, parameters)
    of_pairs = torch.einsum("kip,ljp->klij", stacked[: len(TARGETS)], stacked)
    own = torch.einsum("kip,kjp->kij", stacked, stacked)
    return {"names": names, "image": by_image.tolist(), "products": of_pairs.tolist(), "own": own.tolist()}


def apart(products: Tensor) -> Tensor:
    """The mean of (..., n, n) products over pairs of different batches."""
    n = products.shape[-1]
    return (products.sum((-2, -1)) - products.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def statistics(own: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """The surviving part of each gradient (K,), and its cosines with the targets' (targets, K)."""
    common = apart(own)
    surviving = common / own.diagonal(dim1=-2, dim2=-1).mean(-1)
    lengths = common.clamp(min=1e-300).sqrt()
    return surviving, apart(products) / (lengths[: len(products), None] * lengths)


def report(made: dict[str, Any]) -> str:
    own, products = (torch.tensor(made[key], dtype=torch.float64) for key in ("own", "products"))
    surviving, cosines = statistics(own, products)
    n = own.shape[-1]
    without = [[i for i in range(n) if i != left_out] for left_out in range(n)]
    again = [statistics(own[:, keep][:, :, keep], products[:, :, keep][:, :, :, keep]) for keep in without]
    error = [1.96 * ((n - 1) * torch.stack(each).var(0, unbiased=False)).sqrt() for each in zip(*again, strict=True)]
    length = own.diagonal(dim1=-2, dim2=-1).mean(-1).sqrt()
    image = torch.tensor(made["image"]).sqrt()
    lines = []
    for k, name in enumerate(made["names"]):
        cells = [f"{cosines[t, k]:.2f} ± {error[1][t, k]:.2f}" for t in range(len(TARGETS))]
        ratios = [f"{length[k] / length[0]:.3g}", f"{image[k] / image[0]:.3g}"]
        lines.append([name, f"{100 * surviving[k]:.0f} ± {100 * error[0][k]:.0f}", *cells, *ratios])
    header = ["gradient", "surviving, %", *(f"cosine with {target}" for target in TARGETS), "length", "by image"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid/ and weights/")
    parser.add_argument("--task", default="sr4", help="sr4, noise50, ...")
    parser.add_argument("--steps", type=int, default=400, help="of L1 training")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the products of gradients, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    made = measure(args.data, args.task, args.steps, args.batches, args.seed)
    if args.out:
        args.out.write_text(json.dumps(made))
    print(
        f"{machine(torch.device('cpu'))}; {args.task}, FFDNet 32 x 8 after {args.steps} steps of L1, seed {args.seed}; "
        f"{args.batches} batches of {BATCH} crops of {SIDE}; {time.monotonic() - began:.0f} s\n"
    )
    print(report(made))
    print("\nLengths are those of one batch's gradient over that of L1, at weight 1.")


if __name__ == "__main__":
    main()
