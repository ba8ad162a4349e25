"""Intervals of metrics: a bootstrap over the photographs, paired, since every run sees the same draws of them.

A draw takes as many photographs as were evaluated, at random and with replacement, and a metric is computed of those as
`Results` has it of all: PSNR, SSIM and LPIPS as the mean, MIoU from the summed pixel counts of each class. The 2.5th
and the 97.5th percentile over the draws are the ends of the interval. It covers the choice of photographs; it does not
cover the randomness of training. (B. Efron, R. Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.runs.results import ImageScore, Results, metric_name

Values = NDArray[np.float64]
"""(1 + DRAWS,): a metric of all photographs, then of each draw."""

DRAWS = 2000
LEVEL = 0.95
_BLOCKS = 8  # of draws, to bound memory with many photographs


@dataclass(frozen=True)
class Interval:
    """A number of all photographs, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Values) -> Interval | None:
    """Of a metric or of a difference; None where a draw has no value, such as MIoU of photographs without labels, and
    without draws."""
    if len(values) == 1 or not np.isfinite(values).all():
        return None
    low, high = np.percentile(values[1:], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(values[0]), float(low), float(high))


def marked(difference: float, found: Interval | None, digits: int) -> str:
    """A difference as tables show it, with a star where its interval does not hold 0."""
    return f"{difference:+.{digits}f}{'*' if found and found.excludes_zero else ''}"


def shown(difference: float, found: Interval | None, digits: int) -> str:
    """The same with the ends of its interval, if there is one."""
    ends = f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]" if found else ""
    return marked(difference, found, digits) + ends


def mean(images: ArrayLike) -> Values:
    """A metric that is a mean over photographs, from its value for each, (photographs,)."""
    values = np.asarray(images, dtype=np.float64)
    return _sums(values) / len(values)


def miou(images: ArrayLike) -> Values:
    """MIoU in [0, 1], from counts of pixels (photographs, classes, 3): right, labelled, predicted.

    The mean of right / (labelled + predicted - right) over the classes that occur in the labels, as in
    `d2sm.metrics.iou`; nan where none does.
    """
    right, labelled, predicted = np.moveaxis(_sums(np.asarray(images, dtype=np.float64)), -1, 0)
    present = labelled > 0
    iou = np.divide(right, labelled + predicted - right, out=np.zeros_like(right), where=present)
    with np.errstate(invalid="ignore"):
        found: Values = iou.sum(-1) / present.sum(-1)
    return found


def of_results(results: Results) -> dict[str, Values]:
    """The metrics of the restored photographs, by name ("psnr.sigma25"), of all photographs and of each draw.

    A metric is left out if it lacks a finite value for some photograph (PSNR of an image that equals its clean one), if
    the file of results is of a version that did not store it by photograph, and if there is only one photograph.
    """
    if len(results.rows) != results.images or results.images < 2:
        return {}
    found = {}
    for level in results.restored:
        scores = [row.restored[level] for row in results.rows if level in row.restored]
        for metric in results.metrics if len(scores) == results.images else ():
            if (values := _of_images(scores, metric)) is not None:
                found[metric_name(metric, level)] = values
    return found


def _of_images(scores: Sequence[ImageScore], metric: str) -> Values | None:
    if metric.partition("-")[0] == "miou":
        counts = [score.counts.get(metric, ()) for score in scores]
        classes = {len(count) for count in counts}
        return miou(counts) if len(classes) == 1 and classes != {0} else None
    each = [getattr(score, metric) for score in scores]
    return None if None in each else mean(each)


def difference(
    ours: Mapping[int, Mapping[str, Values]], theirs: Mapping[int, Mapping[str, Values]], metric: str
) -> Values | None:
    """A metric's difference between two settings, mean over the seeds of both; None where a seed of both lacks it.

    Args:
        ours, theirs: by seed, from `of_results`, of the same photographs.
        metric: such as "psnr.sigma25".
    """
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds or any(metric not in ours[seed] or metric not in theirs[seed] for seed in seeds):
        return None
    found: Values = np.mean([ours[seed][metric] - theirs[seed][metric] for seed in seeds], axis=0)
    return found


def _sums(images: Values) -> Values:
    """(photographs, ...) -> (1 + DRAWS, ...): the sum over all photographs, then over each draw."""
    blocks = np.array_split(_times(len(images)), _BLOCKS)
    return np.concatenate([np.tensordot(block.astype(np.float64), images, 1) for block in blocks])


@lru_cache(maxsize=4)
def _times(photographs: int) -> NDArray[np.uint8]:
    """(1 + DRAWS, photographs): how often each photograph counts; the first row is that of all, once each."""
    random = np.random.default_rng(0)
    draws = [
        np.bincount(random.integers(0, photographs, photographs), minlength=photographs).astype(np.uint8)
        for _ in range(DRAWS)
    ]
    return np.stack([np.ones(photographs, np.uint8), *draws])
