"""Every degradation on drawn streets as one labelled picture, and finished runs against different ones as one table.

    python -m tests.benchmarks.degradations --picture degradations.jpg
    python -m tests.benchmarks.degradations runs/jpeg runs/blur

The picture needs no data: for every recipe against another degradation than noise, a small FFDNet is trained by L1 on
crops of drawn streets in a plain loop, and restores a street that it did not see. On an idle core all take a minute.

Runs of different degradations cannot stand in one `d2sm table`, which compares what was measured alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from d2sm.chain import Chain
from d2sm.inference import restore
from d2sm.metrics import psnr
from d2sm.models import FFDNet
from d2sm.noise import seed_of
from pipelines.comparison.rows import FinishedRun, read_run
from pipelines.inference.pictures import grid, labelled
from pipelines.inference.samples import tensor
from pipelines.recipes import recipe, recipes
from pipelines.runs.results import Score, level_title
from pipelines.scenes import scene
from pipelines.text import show

SIZE = (160, 256)  # height and width of the streets
SHOWN, TRAINED_ON = 7, range(100, 112)  # their seeds
STEPS, CROPS, SIDE = 250, 8, 48  # of a training
ACROSS = 2  # degradations side by side in the picture


def table(runs: list[FinishedRun]) -> str:
    """Markdown: the last level of each run, before and after."""
    lines = ["| trained on | measured at | steps | degraded | restored |", "|---|---|---|---|---|"]
    for run in runs:
        level = list(run.results.restored)[-1]
        before, after = (_cell(by_level[level]) for by_level in (run.results.noisy, run.results.restored))
        lines.append(f"| `{run.config.degradation}` | {level_title(level)} | {run.step} | {before} | {after} |")
    lines.append(f"| | clean (ceiling) | | - / - / {runs[0].results.clean.miou or 0:.3f} | |")
    return "\n".join(lines)


def trained(chain: Chain) -> FFDNet:
    """A small FFDNet that has seen this degradation."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    streets = [tensor(scene(seed, *SIZE)[0])[0] for seed in TRAINED_ON]
    network = FFDNet(width=24, depth=6)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        crops = []
        for street in rng.integers(len(streets), size=CROPS):
            top, left = (int(rng.integers(side - SIDE + 1)) for side in SIZE)
            crops.append(streets[street][:, top : top + SIDE, left : left + SIDE])
        clean = torch.stack(crops)
        levels = np.stack([step.at(rng.random(CROPS)) for step in chain.steps], axis=1)
        seeds = rng.integers(2**31, size=CROPS).tolist()
        degraded = chain.degraded(clean, levels=torch.from_numpy(levels).float(), seeds=seeds)
        loss = (network(degraded, torch.from_numpy(chain.sigmas(levels)).float()) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def picture() -> NDArray[np.uint8]:
    """A drawn street, clean, degraded at each recipe's strongest level, and restored by a network trained for it."""
    clean = tensor(scene(SHOWN, *SIZE)[0])
    strips = []
    for name in recipes():
        config = recipe(name)
        if not name.endswith("_cpu") or config.degradation.is_noise:
            continue
        chain = config.levels[-1]
        degraded = chain.degraded(clean, levels=torch.tensor([chain.level]), seeds=[seed_of("street")])
        restored = restore(trained(config.degradation), degraded, chain.sigma)
        images = {
            "clean": clean,
            f"{level_title(chain.name)}, {_psnr(degraded, clean)}": degraded,
            f"restored, {_psnr(restored, clean)}": restored,
        }
        show(f"{name}: {', '.join(images)}")
        strips.append(labelled(grid(list(images.values()), None), list(images)))
    while len(strips) % ACROSS:
        strips.append(np.full_like(strips[0], 255))
    gap = np.full((strips[0].shape[0], 24, 3), 255, np.uint8)
    rows = [np.concatenate([strips[i], gap, strips[i + 1]], axis=1) for i in range(0, len(strips), ACROSS)]
    return np.concatenate(rows)


def _cell(score: Score) -> str:
    miou = "-" if score.miou is None else f"{score.miou:.3f}"
    return f"{score.psnr or 0:.2f} / {score.ssim or 0:.3f} / {miou}"


def _psnr(image: Tensor, clean: Tensor) -> str:
    return f"{psnr(image[0].clamp(0, 1), clean[0]):.1f} dB"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument("--picture", type=Path, help="JPEG file to write")
    given = parser.parse_args()
    if given.runs:
        show(table([read_run(folder) for folder in given.runs]))
    if given.picture:
        Image.fromarray(picture()).save(given.picture, quality=60)


if __name__ == "__main__":
    main()
