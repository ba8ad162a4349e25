"""PSNR, MIoU and distances of features over the first steps of training, of the runs of `early-curve.yaml`.

    python -m tests.benchmarks.early_curve runs/curve --out curve.json
    python -m tests.benchmarks.early_curve tests/benchmarks/results/2026-11-28-cpu-early-curve.json

PSNR and MIoU are those of the runs' own validations. The distance of features is measured here, with the weights of
each checkpoint, on the same images: the mean squared difference between features of the restored and the clean image,
over the mean square of the clean ones. Phi is EfficientNet-Lite0 `blocks.4`, which D2SM and the perceptual loss are
computed on, and ESPNet-CamVid's `encoder.b3`, which took no part in the training.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from d2sm.features import Features
from d2sm.inference import restore
from pipelines.comparison.figures.tsne import phi_of
from pipelines.config import Config
from pipelines.data.splits import evaluation_images
from pipelines.inference import samples
from pipelines.runs import checkpoint, names
from pipelines.runtime import files
from pipelines.runtime.progress import Line
from pipelines.text import show

LITE0, ESPNET = "Lite0", "ESPNet-CamVid"
NUMBERS = {
    "PSNR, dB": ("psnr.sigma50", 1.0),
    "MIoU, ESPNet-CamVid": ("miou.sigma50", 100.0),
    "MIoU, ESPNet-Cityscapes": ("miou-espnet-cityscapes.sigma50", 100.0),
    "distance, Lite0": (f"distance.{LITE0}", 100.0),
    "distance, ESPNet-CamVid": (f"distance.{ESPNET}", 100.0),
}
Curve = dict[str, dict[str, float]]  # step -> number by name


def curve(run: Path) -> Curve:
    """What a run reached at each of its checkpoints."""
    torch.set_num_threads(1)
    folders = names.checkpoints(run)
    config = checkpoint.load_model(folders[-1])[1]
    validated = {entry["step"]: entry["metrics"] for entry in checkpoint.log(folders[-1])["validation"]["recent"]}
    phis = _phis(config)
    items = evaluation_images(config).to_pylist()
    found: Curve = {}
    for folder in folders:
        step, network = checkpoint.step(folder), checkpoint.load_model(folder)[0]
        differences, squares = dict.fromkeys(phis, 0.0), dict.fromkeys(phis, 0.0)
        for item in items:
            sample = samples.load(config, item)
            noisy = sample.noisy[0]
            restored = restore(network, noisy.image, noisy.sigma).clamp(0, 1)
            with torch.inference_mode():
                for name, phi in phis.items():
                    clean = phi(sample.clean)
                    differences[name] += float((phi(restored) - clean).square().mean())
                    squares[name] += float(clean.square().mean())
        distances = {f"distance.{name}": differences[name] / squares[name] for name in phis}
        found[str(step)] = {**validated[step], **distances}
    return found


def _phis(config: Config) -> dict[str, Features]:
    keys = {
        LITE0: {"loss.features": "efficientnet_lite0.blocks.4", "loss.features_weights": None},
        ESPNET: {
            "loss.features": "segmenter:espnet-camvid.encoder.b3",
            "loss.features_weights": config.evaluate.segmenter_weights,
        },
    }
    return {name: phi_of(config.replace({"loss.weight": 1.0, **each})) for name, each in keys.items()}


def measured(study: Path) -> dict[str, Curve]:
    """The curves of all finished runs of a study, two at a time."""
    runs = sorted(each for each in study.iterdir() if (each / "results.json").exists())
    found = {}
    with Line("curves", len(runs)) as line, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for number, (run, one) in enumerate(zip(runs, pool.map(curve, runs), strict=True), start=1):
            found[run.name] = one
            line.to(number)
    return found


def table(curves: Mapping[str, Curve]) -> str:
    """Markdown: L1's means, and the others' differences from it with their deviations over the seeds."""
    by_objective: dict[str, dict[str, Curve]] = {}
    for run, one in curves.items():
        objective, seed = run.removeprefix("200-steps-").rsplit("-seed", 1)
        by_objective.setdefault(objective, {})[seed] = one
    base = by_objective.pop("L1")
    steps = list(next(iter(base.values())))
    lines = [f"| | seeds | step | {' | '.join(NUMBERS)} |", "|---|---:|---:|" + "---:|" * len(NUMBERS)]
    for step in steps:
        means = [statistics.mean(one[step][key] * unit for one in base.values()) for key, unit in NUMBERS.values()]
        lines.append(f"| L1 | {len(base)} | {step} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
        for objective, seeds in by_objective.items():
            cells = []
            for key, unit in NUMBERS.values():
                differences = [(one[step][key] - base[seed][step][key]) * unit for seed, one in seeds.items()]
                deviation = f" ±{statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
                cells.append(f"{statistics.mean(differences):+.2f}{deviation}")
            lines.append(f"| {objective} | {len(seeds)} | {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=Path, help="the study's folder, or a file that --out has written")
    parser.add_argument("--out", type=Path, help="keep the curves in this file")
    args = parser.parse_args()
    curves = measured(args.study) if args.study.is_dir() else json.loads(args.study.read_text(encoding="utf-8"))
    if args.out:
        files.write_text(args.out, json.dumps(curves, indent=1, sort_keys=True))
    show(table(curves))


if __name__ == "__main__":
    main()
