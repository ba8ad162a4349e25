"""Results of an evaluation, photograph by photograph, made of drawn numbers by the functions that evaluation uses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from d2sm import metrics
from pipelines.inference.measuring import Measurement, image_score, score
from pipelines.runs.results import CONVENTION, ImageRow, Judge, Results, Score

LEVELS = ("25", "50")


def scored_results(
    seed: int = 0,
    *,
    images: int = 30,
    psnr: float = 28.0,
    right: float = 0.7,
    judges: dict[str, float] | None = None,
    lpips: float | None = None,
) -> Results:
    """An evaluation of photographs whose labels and difficulty are the same in every call.

    Args:
        seed: of what differs between runs.
        psnr: mean over photographs at sigma 25, in dB; 4 dB less at sigma 50.
        right: share of the pixels that the segmenter gets right at sigma 25; .1 less at sigma 50.
        judges: the same of further segmenters, by name.
        lpips: mean over photographs at sigma 25, twice that at sigma 50; None: not measured.
    """
    shares = {"": right, **(judges or {})}
    found: list[Measurement] = []
    for number in range(images):
        photograph = np.random.default_rng([1, number])
        labelled = photograph.integers(0, 400, len(metrics.CLASSES)) * (photograph.random(len(metrics.CLASSES)) < 0.4)
        hard = photograph.normal()
        for step, level in enumerate(("", *LEVELS)):
            random = np.random.default_rng([2, number, step, seed])
            confusions = {
                judge: _confusion(labelled, np.clip(share - 0.1 * max(0, step - 1) + 0.05 * hard, 0, 1), random)
                for judge, share in shares.items()
            }
            for kind in ("noisy", "restored") if level else ("clean",):
                found.append(
                    Measurement(
                        name=f"street/{number:03}", kind=kind, level=level, tile=0,
                        psnr=psnr - 4 * (step - 1) + 2 * hard + 0.02 * random.normal() if level else float("nan"),
                        ssim=0.8 - 0.1 * step + 0.02 * hard if level else float("nan"),
                        confusion=confusions[""], why="",
                        lpips=lpips * step * np.exp(0.1 * hard) if lpips is not None and level else float("nan"),
                        judged={judge: confusions[judge] for judge in shares if judge}, digest="",
                    )
                )  # fmt: skip

    def scores(kind: str) -> dict[str, Score]:
        return {
            level: score(found, kind, level, segmented=True, classes=metrics.CLASSES)
            for level in (LEVELS if kind != "clean" else ("",))
        }

    rows = []
    for name in sorted({one["name"] for one in found}):
        of_it = {(one["kind"], one["level"]): image_score(one, segmented=True) for one in found if one["name"] == name}
        noisy, restored = ({level: of_it[kind, level] for level in LEVELS} for kind in ("noisy", "restored"))
        rows.append(ImageRow(name, noisy, restored, of_it["clean", ""]))
    return Results(
        images, "val", "abc", "espnet-camvid", CONVENTION, scores("noisy"), scores("restored"), scores("clean")[""],
        rows=tuple(rows), judges={judge: Judge(f"models:/{judge}@one", "w") for judge in judges or {}},
        lpips="" if lpips is None else "vgg16",
    )  # fmt: skip


def of_an_earlier_version(results: Results) -> Results:
    """The same as a version wrote it that stored no counts of pixels."""

    def without(row: ImageRow) -> ImageRow:
        noisy, restored = (
            {level: replace(one, counts={}) for level, one in by.items()} for by in (row.noisy, row.restored)
        )
        return replace(row, noisy=noisy, restored=restored, clean=replace(row.clean, counts={}))

    return replace(results, rows=tuple(map(without, results.rows)))


def _confusion(labelled: np.ndarray, share: float, random: np.random.Generator) -> list[int]:
    """[label, prediction], flat: of each class `share` is right, the rest is spread over all classes."""
    classes = len(labelled)
    counts = np.zeros((classes, classes), int)
    for label, pixels in enumerate(labelled):
        right = random.binomial(pixels, share)
        counts[label] = random.multinomial(pixels - right, np.full(classes, 1 / classes))
        counts[label, label] += right
    return [int(count) for count in counts.ravel()]
