"""What finished runs against different degradations gained: a table, and one picture of a drawn street.

    for r in noise_clip poisson jpeg blur motion sr4 haze photo; do
        d2sm train --recipe ${r}_d2sm_cpu data.root=camvid train.name=$r
    done
    python -m tests.benchmarks.degradations runs/* --picture degradations.jpg

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

from d2sm.inference import restore
from d2sm.metrics import psnr
from d2sm.noise import seed_of
from pipelines.comparison.rows import FinishedRun, read_run
from pipelines.inference.pictures import grid, labelled
from pipelines.inference.samples import tensor
from pipelines.runs import checkpoint
from pipelines.runs.results import Score, level_title
from pipelines.scenes import scene
from pipelines.text import show

SCENE, SIZE = 3, (160, 256)  # the seed and the (height, width) of the street
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


def picture(runs: list[FinishedRun]) -> NDArray[np.uint8]:
    """A drawn street, clean, degraded at each run's strongest level, and restored by its network."""
    clean = tensor(scene(SCENE, *SIZE)[0])
    strips = []
    for run in runs:
        chain = run.config.levels[-1]
        degraded = chain.degraded(clean, levels=torch.tensor([chain.level]), seeds=[seed_of("street")])
        restored = restore(checkpoint.load_model(run.checkpoint)[0], degraded, chain.sigma)
        images = {
            "clean": clean,
            f"{level_title(chain.name)}, {_psnr(degraded, clean)}": degraded,
            f"restored, {_psnr(restored, clean)}": restored,
        }
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
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--picture", type=Path, help="JPEG file to write")
    given = parser.parse_args()
    runs = [read_run(folder) for folder in given.runs]
    show(table(runs))
    if given.picture:
        Image.fromarray(picture(runs)).save(given.picture, quality=88)


if __name__ == "__main__":
    main()
