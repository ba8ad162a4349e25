"""Megapixels per second of `denoise` and `evaluate`: against the plain loop one would write, and over actors.

    python -m tests.benchmarks.evaluation [ROOT] [--images 8] [--rounds 3] [--models 32x8 96x12] [--weights FILE]

ROOT is in the Cityscapes layout, its val split is read; none: CamVid beside the checkout, else built-in scenes. The
plain loops read with PIL, call the network, and write with PIL, or measure with scikit-image; they take the same
networks, noise and threads as ours, and what they give is compared with what ours give. The ways take turns, and ratios
are those within a round. Per core means by the seconds that processors worked, which other work on the machine disturbs
less than the time that passed.

Actors: whole is all they take once Ray is up, imports and networks included; steady is from the eighth image to the
last, so that starting does not count.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from d2sm.noise import seed_of
from pipelines.config import Config
from pipelines.data import index as cityscapes
from pipelines.data.images import TRAIN_IDS
from pipelines.denoise import denoise
from pipelines.evaluate import evaluate, measurements
from pipelines.networks import segmenters
from pipelines.networks.models import build
from pipelines.registry import open_model
from pipelines.runs import checkpoint
from pipelines.runtime import session
from pipelines.runtime.threads import torch_threads
from pipelines.scenes import write_scenes
from tests.benchmarks.timing import SHARED, cpu_seconds, goal, machine, table

CPU = torch.device("cpu")
SIGMA = 25.0
AHEAD = 8  # images that are measured before the steady state is

Times = tuple[float, float]  # seconds passed, seconds worked


def timed(way: Callable[[], object]) -> Times:
    start, worked = time.perf_counter(), cpu_seconds()
    way()
    return time.perf_counter() - start, cpu_seconds() - worked


def rounds_of(ways: Mapping[str, Callable[[], Times]], rounds: int) -> dict[str, np.ndarray]:
    """(rounds, 2) seconds of every way; a first round, not counted, fills caches."""
    found: dict[str, list[Times]] = {name: [] for name in ways}
    for index in range(rounds + 1):
        for name, way in ways.items():
            taken = way()
            if index:
                found[name].append(taken)
            print(f"  round {index}, {name}: {taken[0]:.2f} s passed, {taken[1]:.2f} s worked", file=sys.stderr)
    return {name: np.array(times) for name, times in found.items()}


def rows_of(what: str, found: Mapping[str, np.ndarray], megapixels: float, base: str) -> list[list[str]]:
    """A row a way: rates, and ratios to `base` within a round (median, smallest and largest)."""
    rows = []
    for name, times in found.items():
        cells = [what, name]
        for column in (0, 1):
            ratio = found[base][:, column] / times[:, column]
            known = not np.isnan(ratio).any()
            cells.append(f"{megapixels / np.median(times[:, column]):.3g}" if known else "")
            cells.append(f"{np.median(ratio):.2f}x ({ratio.min():.2f} to {ratio.max():.2f})" if known else "")
            if known and (name == "ours" or name.endswith("actors")) and column == (base == "plain loop"):
                unit = "megapixels a CPU second" if column else "megapixels a second"
                goal(f"{what}, {name}, to {base}'s {unit}", ratio, least=1.0 if column else None)
        rows.append(cells)
    return rows


def rgb(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def plain_model(bundle: Path) -> nn.Module:
    """The network as torch makes it by default."""
    return checkpoint.load_model(bundle)[0].to(memory_format=torch.contiguous_format)


def plain_denoise(model: nn.Module, files: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in files:
        noisy = torch.from_numpy(rgb(file)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            restored = model(noisy, torch.tensor([SIGMA]))
        pixels = (restored[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{Path(file).stem}.png")


def network_alone(model: nn.Module, files: list[str]) -> None:
    height, width, _ = rgb(files[0]).shape
    noisy = torch.rand(1, 3, height, width)
    with torch.no_grad():
        for _ in files:
            model(noisy, torch.tensor([SIGMA]))


def denoising(bundle: Path, items: list[dict[str, Any]], count: int, rounds: int) -> dict[str, np.ndarray]:
    """Three ways to restore a folder, with so many threads."""
    files = [item["image"] for item in items]
    plain, model = plain_model(bundle), open_model(bundle)
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as name, torch_threads(count):
        folder = Path(name)
        (folder / "in").mkdir()
        for file in files:
            (folder / "in" / Path(file).name).symlink_to(Path(file).resolve())
        ways: dict[str, Callable[[], Times]] = {
            "plain loop": lambda: timed(lambda: plain_denoise(plain, files, folder / "plain")),
            "ours": lambda: timed(lambda: denoise(folder / "in", folder / "out", model=model, sigma=SIGMA, quiet=True)),
            "its network alone": lambda: timed(lambda: network_alone(plain, files)),
        }
        found = rounds_of(ways, rounds)
        for file in files:
            ours_, theirs = (
                rgb(str(folder / kind / f"{Path(file).stem}.png")).astype(int) for kind in ("out", "plain")
            )
            assert np.abs(ours_ - theirs).max() <= 1 and (ours_ != theirs).mean() < 1e-3, file
    return found


def plain_evaluate(model: nn.Module, segmenter: nn.Module, config: Config, items: list[dict[str, Any]]) -> list[float]:
    """PSNR and SSIM of noisy and restored a level, then the MIoU of noisy, restored and clean."""
    kinds = ("noisy", "restored", "clean")
    sums = {(kind, sigma): np.zeros(2) for kind in kinds for sigma in config.evaluate.sigmas}
    counts = {key: np.zeros((19, 19), int) for key in sums}
    for item in items:
        clean = torch.from_numpy(rgb(item["image"])).permute(2, 0, 1)[None].float() / 255
        with Image.open(item["label"]) as ids:
            label = TRAIN_IDS[np.asarray(ids)]
        noise = torch.empty(clean.shape[1:]).normal_(generator=torch.Generator().manual_seed(seed_of(item["name"])))
        images = {("clean", config.evaluate.sigmas[0]): clean}
        for sigma in config.evaluate.sigmas:
            noisy = clean + noise * (sigma / 255)
            with torch.no_grad():
                images["restored", sigma] = model(noisy, torch.tensor([sigma])).clamp(0, 1)
            images["noisy", sigma] = noisy.clamp(0, 1)
        for key, image in images.items():
            with torch.no_grad():
                said = segmenter(image).argmax(1)[0].numpy()
            counted = label != 255
            pairs = label[counted].astype(int) * 19 + said[counted]
            counts[key] += np.bincount(pairs, minlength=361).reshape(19, 19)
            if key[0] != "clean":
                a, b = (x[0].permute(1, 2, 0).numpy() for x in (clean, image))
                similarity = structural_similarity(
                    a, b, channel_axis=2, data_range=1, sigma=1.5, gaussian_weights=True, use_sample_covariance=False
                )
                sums[key] += peak_signal_noise_ratio(a, b, data_range=1), similarity
    ious = []
    for matrix in (matrix for matrix in counts.values() if matrix.any()):
        hit, truth = np.diag(matrix), matrix.sum(1)
        ious.append(float((hit / np.maximum(truth + matrix.sum(0) - hit, 1))[truth > 0].mean()))
    return [*(float(v / len(items)) for key, value in sums.items() if key[0] != "clean" for v in value), *ious]


def our_numbers(bundle: Path, config: Config) -> list[float]:
    """The same numbers in the same order."""
    results = evaluate(bundle, config, quiet=True)
    scores = [by_level[level] for by_level in (results.noisy, results.restored) for level in results.restored]
    values = [value for score in scores for value in (score.psnr, score.ssim)]
    return [float(v or 0) for v in (*values, *(score.miou for score in scores), results.clean.miou)]


def evaluating(bundle: Path, config: Config, items: list[dict[str, Any]], rounds: int) -> dict[str, np.ndarray]:
    """A plain loop, and ours in the same process, one thread each."""
    model = plain_model(bundle)
    segmenter = segmenters.load(config.evaluate.segmenter or "", weights=config.evaluate.segmenter_weights)
    here = config.replace({"evaluate.actors": 0, "evaluate.threads": 1})
    # Without a folder for them, numbers of noisy images are not kept from one round for the next.
    with torch_threads(1), patch.dict(os.environ, XDG_CACHE_HOME=os.devnull):
        numbers = np.array(plain_evaluate(model, segmenter, here, items)), np.array(our_numbers(bundle, here))
        print(f"  largest difference of a number: {np.abs(numbers[0] - numbers[1]).max():.1e}", file=sys.stderr)
        np.testing.assert_allclose(*numbers, rtol=0, atol=1e-4)
        ways: dict[str, Callable[[], Times]] = {
            "plain loop": lambda: timed(lambda: plain_evaluate(model, segmenter, here, items)),
            "ours": lambda: timed(lambda: evaluate(bundle, here, quiet=True)),
        }
        return rounds_of(ways, rounds)


def paced(bundle: Path, config: Config) -> tuple[Times, Times]:
    """Seconds for all images: with all it takes to start, and at the pace of those after `AHEAD` (at most half)."""
    items = cityscapes.index(config.data.root, config.data.val_split).slice(0, config.evaluate.limit)
    start, at, seen = time.perf_counter(), [], set()
    for row in measurements(checkpoint.load_model(bundle)[0], config, items):
        if row["name"] not in seen:
            seen.add(row["name"])
            at.append((time.perf_counter(), cpu_seconds()))
    ahead = min(AHEAD, len(at) // 2)
    passed, worked = (end - begin for end, begin in zip(at[-1], at[ahead - 1], strict=True))
    share = len(at) / (len(at) - ahead)
    # Of the whole, what processors worked is not known: actors of the run before take their counters with them.
    return (at[-1][0] - start, math.nan), (passed * share, worked * share)


def actors(bundle: Path, config: Config, rounds: int, most: int) -> dict[str, dict[str, np.ndarray]]:
    """One actor and more, one thread each."""
    several = {f"{n} actor{'s' * (n > 1)}": config.replace({"evaluate.actors": n}) for n in (1, most)}
    found: dict[str, dict[str, list[Times]]] = {what: {n: [] for n in several} for what in ("whole", "steady")}
    for index in range(rounds + 1):
        for name, asked in several.items():
            for what, taken in zip(found, paced(bundle, asked), strict=True):
                if index:
                    found[what][name].append(taken)
                print(
                    f"  round {index}, {name}, {what}: {taken[0]:.2f} s passed, {taken[1]:.2f} s worked",
                    file=sys.stderr,
                )
    return {what: {name: np.array(times) for name, times in ways.items()} for what, ways in found.items()}


def bundle_of(size: str, config: Config, folder: Path) -> tuple[Path, Config]:
    """A fresh network of width x depth as a checkpoint: what it restores costs the same as a trained one's."""
    width, depth = map(int, size.split("x"))
    config = config.replace({"model.width": width, "model.depth": depth})
    torch.manual_seed(0)
    weights = build(config.model).state_dict()
    checkpoint.write(folder / size, weights=weights, state={}, config=config, meta={"step": 0})
    return folder / size, config


def config_of(root: Path | None, weights: Path | None, folder: Path) -> Config:
    """Data and segmenter: what was given, CamVid with the published network, or built-in scenes with a fresh one."""
    beside = SHARED / "weights" / "espnet_p2_q8_camvid.pth"
    if root is None and beside.is_file():
        root, weights = SHARED / "camvid", beside
    root = root or write_scenes(folder / "scenes", train=1, val=24, height=360, width=480)
    segmenter = "espnet-camvid" if weights else "tests.benchmarks.evaluation:fresh_segmenter"
    changes = {"data.root": str(root), "evaluate.segmenter": segmenter, "loss.weight": 0}
    return Config().replace(changes | ({"evaluate.segmenter_weights": str(weights)} if weights else {}))


def fresh_segmenter(weights: object = None) -> nn.Module:
    """ESPNet, untrained: its cost is that of the published one."""
    from d2sm.models import ESPNet

    torch.manual_seed(0)
    return ESPNet(classes=19).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--weights", type=Path, help="ESPNet-CamVid's, for ROOT")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["32x8", "96x12"], help="FFDNets; the first is evaluated")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["denoise", "evaluate", "actors"])
    args = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    rows = []
    with tempfile.TemporaryDirectory(prefix="d2sm-bench-") as name:
        config = config_of(args.root, args.weights, Path(name)).replace({"evaluate.limit": args.images})
        items = cityscapes.index(config.data.root, "val").to_pylist()
        few = items[: args.images]
        size = sum(item["height"] * item["width"] for item in few) / 1e6
        bundles = {model: bundle_of(model, config, Path(name)) for model in args.models}
        first, config = bundles[args.models[0]]
        if "denoise" in args.parts:
            for count in dict.fromkeys((1, os.cpu_count() or 1)):
                for model, (bundle, _) in bundles.items():
                    found = denoising(bundle, few, count, args.rounds)
                    what = f"denoise, FFDNet {model.replace('x', ' x ')}, {count} thread{'s' * (count > 1)}"
                    rows += rows_of(what, found, size, "plain loop")
        if "evaluate" in args.parts:
            found = evaluating(first, config, few, args.rounds)
            rows += rows_of(
                f"evaluate, FFDNet {args.models[0].replace('x', ' x ')}, 1 thread", found, size, "plain loop"
            )
        if "actors" in args.parts:
            longer = config.replace({"evaluate.limit": min(3 * args.images, len(items))})
            whole = sum(item["height"] * item["width"] for item in items[: longer.evaluate.limit]) / 1e6
            session.start(cpus=args.actors + 1)
            for what, found in actors(first, longer, args.rounds, args.actors).items():
                rows += rows_of(f"evaluate, {longer.evaluate.limit} images, {what}", found, whole, "1 actor")
            ray.shutdown()
        print(
            f"{machine(CPU)}; {len(few)} images of {Path(config.data.root).name}, {size / len(few):.3g} MP each; "
            f"medians of {args.rounds} rounds, smallest and largest in brackets\n"
        )
    print(table(["", "way", "MP / s", "ratio", "MP / CPU s", "ratio"], rows))


if __name__ == "__main__":
    main()
