"""The photographs of a data set without splits that are held out: not trained on, and evaluated on instead.

A folder without train/ and val/ would otherwise be evaluated on the photographs it was trained on. Which ones are held
out follows from a seed and the photographs' names alone: it is the same for every run, recipe and seed of training,
whatever the folder's place, and a photograph that is added moves few others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from pipelines.data.images import DataError

FRACTION = 0.1  # of the photographs, rounded; at least one
TRAIN, VAL = "train", "val"  # the splits that such a data set has


def held_out(names: Collection[str], *, seed: int = 0) -> frozenset[str]:
    """The names that are held out of these; none where there is only one."""
    if len(names) < 2:
        return frozenset()
    count = max(1, round(FRACTION * len(names)))
    return frozenset(sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())[:count])


def names_of(split: str, names: Collection[str], root: Path) -> frozenset[str]:
    """The names of a split of a data set without splits: "train" is what is left when the others are held out.

    Raises:
        DataError: there is nothing to be held out, since the data set is a single photograph.
    """
    held = held_out(names)
    if split == TRAIN:
        return frozenset(names) - held
    if not held:
        raise DataError(
            f"{root}: holds a single photograph and no {VAL}/, so none is left to evaluate on; add photographs, or "
            "train without evaluation (--no-evaluate)"
        )
    return held
