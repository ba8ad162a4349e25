"""How much of D2SM's gradient survives the average over batches, and where it points, by kernel, samples and queue.

    python -m tests.benchmarks.gradient_signal --data ../shared/data --network RUN/step-00000800
        [--earlier RUN/step-00000600] [--chain downsample:4] [--batches 24] [--out FILE.json]

Nothing is trained: the network is that of a checkpoint of `d2sm train`. Queues are filled, and the gradients by its
parameters are taken over batches that are the same for every variant. |E g|^2 / E |g|^2 is the part of a batch's
gradient that all batches have in common; the rest is noise of the batch. Products of expectations are estimated without
bias, from pairs of different batches, as are the cosines between them; intervals leave out one batch at a time
(jackknife). The networks that look at the crops are those of `tests.benchmarks.fronts`.

The class-aware variants are prototypes that need labels. Each matches n x n similarities, with `allowed` pairs alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from d2sm.chain import parse
from d2sm.divergence import Kernel
from d2sm.features import features, patches
from d2sm.matching import StatisticsMatching
from d2sm.models import FFDNet
from d2sm.objectives import CrossEntropy
from d2sm.weights import read_state_dict
from tests.benchmarks.fronts.data import CLASSES, VOID, Photographs, read_photographs
from tests.benchmarks.fronts.networks import PHI, Segmenter
from tests.benchmarks.timing import machine, table

BATCH, SIDE = 16, 96
FILL = 32  # batches before the first that counts; they fill all queues
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
        """The divergence of Phi's maps, which enter the queue."""
        return cast(Tensor, self.matching(*(samples(maps, self.patch) for maps in (restored, clean))))

    store = __call__


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

    def store(self, restored: Tensor, clean: Tensor, labels: Tensor) -> list[Tensor]:
        """The queue with the new samples: features of restored and clean, classes, numbers drawn for each sample."""
        classes, part = majority(labels, self.patch)
        keep = (classes != VOID) & (part >= self.pure)
        new = [samples(maps, self.patch)[keep] for maps in (restored, clean)]
        drawn = torch.randint(0, 2**31, (len(classes),), generator=DRAWN)
        new += [classes[keep], drawn[keep]]
        if self.stored:
            new = [torch.cat([old, x])[-self.queue :] for old, x in zip(self.stored, new, strict=True)]
        self.stored = [x.detach() for x in new]
        return new

    def __call__(self, restored: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        x, y, classes, drawn = self.store(restored, clean, labels)
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
    "whole crops, q 512": lambda: Variant(patch=None, queue=512),
    "whole crops, q 512, center": lambda: Variant(patch=None, queue=512, center=True),
    "q 256": lambda: Variant(queue=256),
    "q 4096": lambda: Variant(queue=4096),
    "queue of an earlier network": lambda: Variant(stale=True),
    "prototype: all pairs": lambda: ClassAware(lambda classes, _: torch.ones(2 * classes.shape, dtype=torch.bool)),
    "prototype: same class": lambda: ClassAware(same),
    "prototype: other class": lambda: ClassAware(other),
    "prototype: groups by chance": lambda: ClassAware(as_many_by_chance),
    "prototype: patches of one class": lambda: ClassAware(lambda c, _: torch.ones(2 * c.shape, dtype=torch.bool), 0.9),
    "prototype: patches of one class, same class": lambda: ClassAware(same, 0.9),
}
TARGETS = ("L1", "perceptual", "CE, CamVid", "CE, Cityscapes")


class Crops:
    """Crops of the training photographs and their degraded versions, from a seed alone."""

    def __init__(self, photographs: Photographs, chain: str, seed: int) -> None:
        self.photographs, self.chain, self.count = photographs, parse(chain), 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean (B, 3, H, W), degraded likewise, sigma (B,) as a network is told it, labels (B, H, W)."""
        clean, labels = self.photographs.crops(self.generator, BATCH, SIDE)
        seeds = range(self.count, self.count + BATCH)
        self.count += BATCH
        levels = torch.tensor([self.chain.level] * BATCH)
        return (
            clean,
            self.chain.degraded(clean, levels=levels, seeds=seeds),
            torch.full((BATCH,), self.chain.sigma),
            labels,
        )


def load(checkpoint: Path) -> FFDNet:
    network = FFDNet(32, 8)
    network.load_state_dict(read_state_dict(checkpoint / "model.safetensors"))
    return network.requires_grad_()


def flat(values: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def measure(
    data: Path, network: FFDNet, earlier: FFDNet | None, chain: str, count: int, seed: int, only: list[str]
) -> Iterator[dict[str, Any]]:
    """Gradients of all variants over the batches, reduced to products; of those so far, from the third batch on.

    Args:
        earlier: fills the stale queue; None: that variant is left out.
        only: names of variants; []: all.
    """
    photographs = read_photographs(data / "camvid", torch.device("cpu"))
    phi, weights = features(PHI), data / "weights"
    camvid, cityscapes = CrossEntropy(Segmenter("camvid", weights)), Segmenter("cityscapes", weights)
    made = {name: build() for name, build in VARIANTS.items() if not only or name in only}
    made = {name: variant for name, variant in made.items() if earlier or not variant.stale}
    batches, parameters = Crops(photographs, chain, seed), list(network.parameters())

    with torch.no_grad():
        for _ in range(FILL):
            clean, degraded, sigma, labels = batches()
            of_clean, of_restored = phi(clean), phi(network(degraded, sigma))
            of_earlier = phi(earlier(degraded, sigma)) if earlier else of_restored
            for variant in made.values():
                variant.store(of_earlier if variant.stale else of_restored, of_clean, labels)

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
            by_image[index] += gradient.double().square().sum()
            rows[index].append(flat(torch.autograd.grad(restored, parameters, gradient, retain_graph=True)))
        if len(rows[0]) > 2:
            stacked = torch.stack([torch.stack(of_one) for of_one in rows]).double()  # (K, batches, parameters)
            of_pairs = torch.einsum("kip,ljp->klij", stacked[: len(TARGETS)], stacked)
            own = torch.einsum("kip,kjp->kij", stacked, stacked)
            image = (by_image / len(rows[0])).tolist()
            yield {"names": names, "image": image, "products": of_pairs.tolist(), "own": own.tolist()}


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
    lines, found = [], (surviving > error[0]).tolist()
    for k, name in enumerate(made["names"]):
        cells = [
            f"{cosines[t, k]:.2f} ± {error[1][t, k]:.2f}" if found[t] and found[k] else "-" for t in range(len(TARGETS))
        ]
        ratios = [f"{length[k] / length[0]:.3g}", f"{image[k] / image[0]:.3g}"]
        lines.append([name, f"{100 * surviving[k]:.0f} ± {100 * error[0][k]:.0f}", *cells, *ratios])
    header = ["gradient", "surviving, %", *(f"cosine with {target}" for target in TARGETS), "length", "by image"]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid/ and weights/")
    parser.add_argument("--network", type=Path, required=True, help="checkpoint of an FFDNet 32 x 8")
    parser.add_argument("--earlier", type=Path, help="another, to fill a queue with")
    parser.add_argument("--chain", default="downsample:4", help="as degrade.chain, with fixed levels")
    parser.add_argument("--batches", type=int, default=24, help="at least 3")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=[], choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--out", type=Path, help="file for the products of gradients, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    earlier = load(args.earlier) if args.earlier else None
    for made in measure(args.data, load(args.network), earlier, args.chain, args.batches, args.seed, args.only):
        if args.out:
            args.out.write_text(json.dumps(made))
    print(
        f"{machine(torch.device('cpu'))}; {args.network}, {args.chain}, seed {args.seed}; {args.batches} batches "
        f"of {BATCH} crops of {SIDE}; {time.monotonic() - began:.0f} s\n"
    )
    print(report(made))
    print("\nLengths are those of one batch's gradient over that of L1, at weight 1. A cosine is left out where")
    print("nothing of one of both gradients survives beyond the interval.")


if __name__ == "__main__":
    main()
