"""Write built-in street scenes as a data set in the Cityscapes layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import parsing
from pipelines.data.images import write_png
from pipelines.runtime import files
from pipelines.runtime.progress import stage
from pipelines.scenes.drawing import VERSION, SceneError, check_size, scene

MANIFEST, STARTED = "scenes.json", "scenes.partial.json"
CITY = "scenes"
_SPLIT = 300_000  # seeds a split may use: a multiple of 3 (large vehicles) and 6 (weathers)


def write_scenes(
    root: str | Path, *, train: int = 24, val: int = 6, height: int = 256, width: int = 512, seed: int = 0
) -> Path:
    """Write a set of scenes in the Cityscapes layout.

    A folder that already holds this very set is left as it is; an interrupted set is written anew.

    Args:
        root: a folder that is new or empty, or holds scenes of the same arguments.
        train, val: scenes in each split, at least 1. The validation scenes do not depend on `train`.
        height, width: in pixels.
        seed: of the set; sets of different seeds have no scene in common.

    Returns:
        The root.

    Raises:
        SceneError: a number out of range, or a root with other content.
    """
    check_size(seed, height, width)
    if min(train, val) < 1 or max(train, val) > _SPLIT:
        raise SceneError(f"scenes: train={train}, val={val}; give numbers from 1 to {_SPLIT}")
    root = Path(root).expanduser()
    wanted = {"generator": VERSION, "seed": seed, "train": train, "val": val, "height": height, "width": width}
    names = list(_files(train, val, seed))
    if _complete(root, wanted, names):
        return root
    files.ready_folder(root, asked_by=str(root))
    stage(f"drawing {train + val} scenes of {width}x{height} pixels")
    files.write_text(root / STARTED, json.dumps(wanted, indent=2) + "\n")
    for folder, stem, scene_seed in names:
        picture, ids = scene(scene_seed, height, width)
        write_png(root / "leftImg8bit" / folder / f"{stem}_leftImg8bit.png", picture)
        write_png(root / "gtFine" / folder / f"{stem}_gtFine_labelIds.png", ids)
    os.replace(root / STARTED, root / MANIFEST)
    return root


def _files(train: int, val: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """(split/city, stem of the file names, seed) of every scene of a set."""
    for split, count, first in (("train", train, 0), ("val", val, _SPLIT)):
        for i in range(count):
            yield f"{split}/{CITY}", f"{CITY}_{seed:06d}_{i:06d}", 2 * _SPLIT * seed + first + i


def _complete(root: Path, wanted: dict[str, int], names: list[tuple[str, str, int]]) -> bool:
    """Whether this very set is there. Raises SceneError if anything else is."""
    if root.exists() and not root.is_dir():
        raise SceneError(f"{root}: is a file; give a new or empty folder")
    if not root.exists() or all(files.is_leftover(path) for path in root.iterdir()):
        return False
    found = {name: _read(root / name) for name in (MANIFEST, STARTED) if (root / name).is_file()}
    if not found:
        raise SceneError(f"{root}: holds files that are no built-in scenes; give a new or empty folder")
    for manifest in found.values():
        differs = [f"{k}={manifest.get(k)}" for k in wanted if manifest.get(k) != wanted[k]]
        if differs:
            raise SceneError(f"{root}: holds other built-in scenes ({', '.join(differs)}); give a new folder")
    pictures = [root / "leftImg8bit" / folder / f"{stem}_leftImg8bit.png" for folder, stem, _ in names]
    labels = [root / "gtFine" / folder / f"{stem}_gtFine_labelIds.png" for folder, stem, _ in names]
    return MANIFEST in found and all(path.is_file() for path in pictures + labels)


def _read(path: Path) -> dict[str, Any]:
    remedy = "it is no manifest of built-in scenes; give a new folder, or remove this one"
    return parsing.read_json(path, error=SceneError, remedy=remedy)
