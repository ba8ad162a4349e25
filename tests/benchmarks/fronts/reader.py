"""Tables from the results. Intervals: 95 %, bootstrap over the photographs, paired: both sides see the same draws."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipelines.comparison import intervals
from pipelines.comparison.fronts import interpolated
from pipelines.comparison.intervals import Values

Result = dict[str, Any]
Scores = dict[str, Values]

# Measure: how it is printed, factor, digits.
MEASURES = {
    "psnr": ("PSNR", 1, 3), "camvid": ("CamVid", 100, 2), "cityscapes": ("Cityscapes", 100, 2),
    "squeezenet": ("SqueezeNet", 1000, 1),
}  # fmt: skip
AGAINST = ("perceptual", "d2sm_patches")
DROPS = (0.05, 0.1, 0.25, 0.5)  # dB below L1
COURSE = ("psnr", "camvid", "cityscapes")


def load(paths: Iterable[Path]) -> dict[str, Result]:
    """Results by id; those of later files replace earlier ones."""
    made: dict[str, Result] = {}
    for path in paths:
        with gzip.open(path, "rt") as file:
            made |= {result["id"]: result for result in map(json.loads, file)}
    return made


def summary(evaluation: dict[str, Any]) -> dict[str, float]:
    """One number for each measure; of nothing, nothing."""
    arrays = {key: np.array(values, dtype=float) for key, values in evaluation.items()}
    return {key: float(miou(a)[0] if a.ndim == 3 else a.mean()) for key, a in arrays.items()}


def bootstrap(evaluation: dict[str, Any]) -> Scores:
    """Every measure of all photographs and of draws of them, see `pipelines.comparison.intervals`."""
    arrays = {key: np.array(evaluation[key], dtype=float) for key in MEASURES}
    return {key: miou(values) if values.ndim == 3 else intervals.mean(values) for key, values in arrays.items()}


def miou(counts: Values) -> Values:
    """MIoU from (photographs, 3, 11) pixels right, labelled, predicted."""
    return intervals.miou(np.moveaxis(counts, 1, 2))


def interval(values: Values, factor: float = 1) -> tuple[float, float, float]:
    """The number, and the ends of its interval."""
    found = intervals.interval(values * factor)
    assert found is not None, "every photograph has labels"
    return found.value, found.low, found.high


def said(values: Values, measure: str) -> str:
    """As text; a star says that the interval does not contain 0."""
    _, factor, digits = MEASURES[measure]
    number, low, high = interval(values, factor)
    star = "*" if low > 0 or high < 0 else " "
    return f"{number:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{star}"


@dataclass
class Point:
    """A ratio of an objective: its difference from L1, mean over the seeds."""

    ratio: float
    weight: float
    camvid: list[float]  # of each seed
    difference: Scores


Front = list[Point]


class Fronts:
    """The fronts of a task."""

    def __init__(self, results: dict[str, Result], task: str) -> None:
        trained = [result for result in results.values() if result["id"].startswith(f"{task}-")]
        self.l1 = {r["seed"]: bootstrap(r["evaluation"]) for r in trained if r["objective"] == "l1"}
        groups: dict[tuple[str, float], dict[int, Result]] = defaultdict(dict)
        for result in trained:
            if result["objective"] != "l1" and result["seed"] in self.l1:
                groups[result["objective"], result["ratio"]][result["seed"]] = result
        self.fronts: dict[str, Front] = defaultdict(list)
        for (name, ratio), by_seed in sorted(groups.items()):
            scores = {seed: bootstrap(by_seed[seed]["evaluation"]) for seed in sorted(by_seed)}
            each = {key: np.array([scores[seed][key] - self.l1[seed][key] for seed in scores]) for key in MEASURES}
            mean = {key: values.mean(0) for key, values in each.items()}
            weight = next(iter(by_seed.values()))["weight"]
            self.fronts[name].append(Point(ratio, weight, each["camvid"][:, 0].tolist(), mean))

    def at(self, name: str, drop: float) -> Scores | None:
        """Differences from L1 where the PSNR is `drop` dB below it, see `comparison.fronts.interpolated`."""
        return interpolated([point.difference for point in self.fronts[name]], "psnr", drop)

    def text(self) -> list[str]:
        """Both tables."""
        levels = {key: [f"{self.l1[seed][key][0]:.4f}" for seed in sorted(self.l1)] for key in MEASURES}
        lines = [
            f"L1, seeds {sorted(self.l1)}: " + "; ".join(f"{MEASURES[k][0]} {' '.join(v)}" for k, v in levels.items())
        ]
        for name, front in self.fronts.items():
            for point in front:
                measures = "  ".join(f"{MEASURES[key][0]} {said(point.difference[key], key)}" for key in MEASURES)
                about = f"{name:15s} r {point.ratio:<4g} weight {point.weight:<9.3g} seeds {len(point.camvid)}"
                by_seed = ", ".join(f"{100 * number:+.2f}" for number in point.camvid)
                lines.append(f"  {about}  {measures}  CamVid by seed {by_seed}")
        for drop in DROPS:
            held = {name: scores for name in self.fronts if (scores := self.at(name, drop)) is not None}
            lines += [f"at {drop} dB below L1, interpolated:"] if held else []
            for name, scores in held.items():
                line = f"  {name:15s}  " + "  ".join(
                    f"{MEASURES[k][0]} {said(scores[k], k)}" for k in list(MEASURES)[1:]
                )
                for other in AGAINST:
                    if other in held and other != name:
                        parts = [said(scores[key] - held[other][key], key) for key in ("camvid", "cityscapes")]
                        line += f"  over {other}: {' / '.join(parts)}"
                lines.append(line)
        return lines


def gradients(result: Result) -> list[str]:
    """Lengths, what survives averaging over batches, and directions of the objectives' gradients."""
    names, square, cross = result["names"], np.array(result["square"]), np.array(result["cross"])
    image = np.array(result["image_gram"])
    signal = cross.diagonal()
    length, at_image = np.sqrt(signal.clip(min=0)), np.sqrt(image.diagonal())
    cosine = cross / np.maximum(np.outer(length, length), 1e-30)
    image_cosine = image / np.outer(at_image, at_image)
    shown = [index for index, name in enumerate(names) if name in ("l1", "perceptual", "cross_entropy")]
    lines = [
        f"{result['batches']} batches of {result['batch']} crops of {result['side']}; |g| by the parameters in a batch;"
        " share of |g|^2 that is left of the mean over batches, |E g|^2 / E |g|^2"
    ]
    for index, name in enumerate(names):
        cosines = " ".join(f"{names[i]} {cosine[index, i]:+.2f}" for i in shown)
        of_images = " ".join(f"{names[i]} {image_cosine[index, i]:+.2f}" for i in shown)
        relative = np.sqrt(square[index] / square[0])
        lines.append(
            f"  {name:16s} value {result['value'][index]:<8.3g} |g| {np.sqrt(square[index]):<8.3g}"
            f" of L1's {relative:<8.3g}"
            f" share {signal[index] / square[index]:.3f}  cosine with {cosines}  at the image: with {of_images}"
        )
    return lines


def early(results: dict[str, Result]) -> list[str]:
    """The course of the trainings from scratch: means over seeds; differences from L1, of each seed."""
    courses: dict[str, dict[int, dict[int, dict[str, float]]]] = defaultdict(dict)  # objective, seed, step, measure
    for result in results.values():
        if result["id"].startswith("early-"):
            course = {point["step"]: point for point in result["curve"]}
            courses[result["objective"]][result["seed"]] = course | {result["steps"]: summary(result["evaluation"])}
    lines = []
    for name, by_seed in courses.items():
        pairs = sorted(set(by_seed) & set(courses["l1"]))
        for step in sorted(next(iter(by_seed.values()))):
            means = [f"{key} {np.mean([course[step][key] for course in by_seed.values()]):.4f}" for key in COURSE]
            line = f"  {name:10s} step {step:5d} seeds {len(by_seed)}: {'  '.join(means)}"
            for key in COURSE if name != "l1" else ():
                label, factor, digits = MEASURES[key]
                each = [factor * (by_seed[seed][step][key] - courses["l1"][seed][step][key]) for seed in pairs]
                line += f"  {label} {', '.join(f'{number:+.{digits}f}' for number in each)}"
            lines.append(line)
    return lines


def tables(results: dict[str, Result]) -> str:
    """Everything, as text."""
    lines = ["Baselines: PSNR dB, MIoU of ESPNet-CamVid and of ESPNet-Cityscapes (11 classes), SqueezeNet distance"]
    for name, result in results.items():
        if name.startswith(("baseline-", "start-")):
            numbers = summary(result["evaluation"])
            lines.append(f"  {name:28s} " + "  ".join(f"{numbers[key]:.4f}" for key in MEASURES))
    started = [name.removeprefix("start-") for name in results if name.startswith("start-")]
    for task in sorted(task for task in started if f"{task}-l1-s0" in results):
        lines += [f"\n{task}: difference from L1; MIoU in points, SqueezeNet distance x 1000; * interval without 0"]
        lines += Fronts(results, task).text()
    for name, result in results.items():
        lines += [f"\n{name}", *gradients(result)] if result["kind"] == "gradients" else []
    lines += ["\nEarly training, sigma 50: means over seeds, and differences from L1 of each seed", *early(results)]
    trained = [result for result in results.values() if result["kind"] == "train"]
    hours = sum(result["wall"] for result in results.values()) / 3600
    lines.append(
        f"\n{len(results)} jobs, {len(trained)} of them trainings; {hours:.2f} hours of processes, which share a device"
    )
    times: dict[str, list[float]] = defaultdict(list)
    for result in trained:
        times[f"{result['objective']} {result['network']}"].append(1e3 * result["seconds"] / result["steps"])
    return "\n".join(
        [*lines, "ms a step: " + ", ".join(f"{name} {median(ms):.1f}" for name, ms in sorted(times.items()))]
    )
