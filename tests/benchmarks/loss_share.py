"""What the losses cost in a training step of a denoiser: FFDNet, batch 16, crops of 128 x 128.

    python -m tests.benchmarks.loss_share [--device cuda] [--models small full] [--features NAME ...] [--rounds 5]

L1 alone, L1 + perceptual (mean squared difference of the same features) and L1 + D2SM, with the queues full. A step is
everything: restoring, losses, backward and Adam. Set OMP_NUM_THREADS for the cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from d2sm import D2SMLoss
from d2sm.features import Features, features
from d2sm.models.ffdnet import FFDNet
from tests.benchmarks.timing import interleaved, machine, ms, table

BATCH, CROP, QUEUE, PATCH = 16, 128, 1024, 64
MODELS = {"full": (96, 12), "small": (24, 7)}
Loss = Callable[[Tensor, Tensor], Tensor]


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    return (restored - clean).abs().mean()


def perceptual(phi: Features) -> Loss:
    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            f_y = phi(clean)
        return l1(restored, clean) + (phi(restored) - f_y).square().mean()

    return loss


def d2sm(phi: Features, patch_size: int | None, device: torch.device, crop: int = CROP) -> Loss:
    """With the queue filled by random rows: what they hold costs nothing."""
    matching = D2SMLoss(phi, QUEUE, patch_size).to(device)
    length = phi.channels * ((patch_size or crop) // phi.stride) ** 2
    for _ in range(QUEUE // 64):
        rows = torch.randn(64, length, device=device)
        matching.matching(restored=rows + 0.3 * torch.randn_like(rows), clean=rows)

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        return l1(restored, clean) + matching(restored=restored, clean=clean)

    return loss


def training_step(
    model: nn.Module, loss: Loss, device: torch.device, batch: int = BATCH, crop: int = CROP
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    clean = torch.rand(batch, 3, crop, crop, device=device)
    sigma = torch.full((batch,), 25.0, device=device)
    noisy = clean + 25 / 255 * torch.randn_like(clean)

    def step() -> None:
        value = loss(model(noisy, sigma), clean)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def row(size: str, name: str, device: torch.device, rounds: int, budget: float) -> list[str]:
    width, depth = MODELS[size]
    weights = "random" if name.startswith("vgg19") else None  # VGG's weights need a download and change no cost
    phi = features(name, weights=weights).to(device)
    losses = {
        "l1": l1,
        "perceptual": perceptual(phi),
        "whole": d2sm(phi, None, device),
        "patches": d2sm(phi, PATCH, device),
    }
    model = FFDNet(width=width, depth=depth).to(device)
    steps = {key: training_step(model, loss, device) for key, loss in losses.items()}
    time = interleaved(steps, device, rounds=rounds, budget=budget)
    against = [f"{ms(time[key])} ({time[key] / time['perceptual']:.2f}x)" for key in ("whole", "patches")]
    return [f"FFDNet {width} x {depth}", name, ms(time["l1"]), ms(time["perceptual"]), *against]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--features", nargs="+", default=["efficientnet_lite0.blocks.4", "vgg19.conv5_4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60, help="seconds a row may take (at least three rounds)")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    print(f"{machine(device)}; batch {BATCH}, crops {CROP} x {CROP}, q = {QUEUE}, float32, medians\n")
    rows = [row(size, name, device, args.rounds, args.budget) for name in args.features for size in args.models]
    header = [
        "ms a training step",
        "features",
        "L1",
        "L1 + perceptual",
        "L1 + D2SM w/o internal",
        f"L1 + D2SM w/ internal, K = {PATCH}",
    ]
    print(table(header, rows))
    print("\nIn brackets: against L1 + perceptual on the same features.")


if __name__ == "__main__":
    main()
