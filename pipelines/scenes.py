"""Built-in street scenes in the Cityscapes layout, for whoever has no data set at hand.

A scene is drawn, not photographed: a street in true perspective, in one of several weathers and times of day;
a set shows all 19 train classes. A seed gives the same pixels every time. Labels are Cityscapes label ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import scene_houses as houses
from pipelines import scene_people as people
from pipelines import scene_street as street_
from pipelines import scene_things as things
from pipelines import scene_vehicles as vehicles
from pipelines.images import write_png
from pipelines.scene_canvas import MOODS, Array, Camera, Canvas
from pipelines.scene_solids import Pose
from pipelines.scene_street import Street

VERSION = 1  # of the pictures: raise it whenever the same seed would give other pixels
MANIFEST, STARTED = "scenes.json", "scenes.partial.json"
CITY = "scenes"
_SPLIT = 300_000  # seeds a split may use: a multiple of 3 (large vehicles) and 6 (moods)
_SUN = {"noon": 1.1, "morning": 0.75, "evening": 0.55}


class SceneError(ValueError):
    """Scenes that cannot be written as asked: one line with the field or folder and the remedy."""


def scene(seed: int, height: int = 256, width: int = 512) -> tuple[Array, Array]:
    """Draws one street.

    Args:
        seed: 0 or more; three seeds in a row show each large vehicle (truck, bus, tram) twice.
        height, width: pixels, at least 64 x 96.

    Returns:
        picture, uint8 (height, width, 3) RGB, and label ids, uint8 (height, width).

    Raises:
        SceneError: a seed below 0, or a size too small to show anything.
    """
    _check(seed, height, width)
    rng = np.random.default_rng([VERSION, seed])
    large = (("truck", "bus"), ("tram", "truck"), ("bus", "tram"))[seed % 3]
    canvas, street = _empty(seed, height, width, "tram" in large, rng)
    street_.sky(canvas, rng)
    street_.skyline(canvas, rng)
    street_.ground(canvas, street, rng)
    houses.lots(canvas, street)
    street_.reflect(canvas, canvas.mood.wet)
    for _, draw in sorted(_stage(canvas, street, large, rng), key=lambda item: -item[0]):
        draw()
    return _finish(canvas, height, width)


def _check(seed: int, height: int, width: int) -> None:
    if seed < 0 or height < 64 or width < 96:
        raise SceneError(
            f"scenes: seed={seed}, height={height}, width={width}: needs seed >= 0, height >= 64, width >= 96"
        )


def _empty(seed: int, height: int, width: int, rails: bool, rng: np.random.Generator) -> tuple[Canvas, Street]:
    name = list(MOODS)[seed % len(MOODS)] if seed % 7 else "morning"
    focal = 1.45 * width  # the canvas is twice as large: a field of view of 69 degrees
    camera = Camera(
        cx=width * float(rng.uniform(0.84, 1.16)), horizon=2 * height * float(rng.uniform(0.43, 0.50)),
        focal=focal, height=float(rng.uniform(1.9, 2.4)),
    )  # fmt: skip
    side, rise = float(rng.choice([-1.0, 1.0])), _SUN.get(name, 0.8)
    sun = np.array([side * float(rng.uniform(0.45, 0.75)), rise, float(rng.uniform(-0.75, -0.35))])
    canvas = Canvas(2 * height, 2 * width, camera, MOODS[name], sun / np.linalg.norm(sun))
    return canvas, street_.plan(rng, rails=rails)


Act = tuple[float, Callable[[], None]]  # distance, and what paints the thing


def _stage(canvas: Canvas, street: Street, large: tuple[str, str], rng: np.random.Generator) -> list[Act]:
    """Everything that stands or moves on the street, in no order."""
    acts = _furniture(canvas, street, rng)
    acts += _traffic(canvas, street, large, rng)
    return acts + _people(canvas, street, rng)


def _furniture(canvas: Canvas, street: Street, rng: np.random.Generator) -> list[Act]:
    acts: list[Act] = []
    kerb, zebra = street.road + 0.55, street.crossing

    def add(z: float, paint: Callable[..., None], *args: Any) -> None:
        acts.append((z, lambda: paint(canvas, *args)))

    for side in (-1, 1):
        for k, z in enumerate(np.arange(8.5 + 2 * side + rng.uniform(-1, 1), 85, 8.0)):
            x = side * (kerb + float(rng.uniform(0, 0.15)))
            if abs(z - zebra - 1) < 2.5:
                continue
            if k % 2:
                add(z, things.lamp, x, float(z))
            else:
                add(z, things.tree, x + side * 0.2, float(z), float(rng.uniform(5.0, 7.2)), rng)
        on = int(rng.integers(3))
        add(zebra, things.traffic_light, side * (kerb - 0.1), zebra - 0.4, on)
        for z in (float(rng.uniform(8.5, 11)), float(rng.uniform(23, 34))):
            add(z, things.sign, side * (kerb + 0.35), z, int(rng.integers(5)))
        z = float(rng.uniform(9, 26))
        add(z, things.bin_, side * (kerb + street.verge), z)
    return acts


def _traffic(canvas: Canvas, street: Street, large: tuple[str, str], rng: np.random.Generator) -> list[Act]:
    acts: list[Act] = []

    def add(paint: Callable[..., None], x: float, z: float, yaw: float) -> None:
        pose = Pose(x, z, yaw + float(rng.normal(0, 0.02)))
        acts.append((z, lambda: paint(canvas, pose, rng)))

    kinds = {"truck": vehicles.truck, "bus": vehicles.bus, "tram": vehicles.tram}
    away, towards = (large[1], large[0]) if large[0] == "tram" else large
    zebra = street.crossing
    add(kinds[away], 1.75, max(zebra + 10.5, 23.0) + float(rng.uniform(0, 4)), 0.0)
    far = 14.0 if towards == "tram" else 11.0
    add(kinds[towards], -1.9, zebra + far + float(rng.uniform(0, 3)), np.pi)
    if rng.random() < 0.75:
        add(vehicles.car, 1.7, float(rng.uniform(9.5, zebra - 1.5)), 0.0)
    if rng.random() < 0.4:
        add(vehicles.car, -1.8, zebra - 3.0, np.pi)
    for z in (46.0, 58.0, 72.0):
        add(vehicles.car, float(rng.choice([-1.8, 1.8])), z + float(rng.uniform(-4, 4)), 0.0)
    for side in (-1, 1):
        z = float(rng.uniform(7.5, 11.0))
        while z < 60:
            if rng.random() < 0.42 and abs(z - zebra - 1.5) > 4.4:
                add(vehicles.car, side * (street.road - 0.95), z, 0.0 if side > 0 else np.pi)
            z += float(rng.uniform(5.2, 7.0))
    return acts


def _people(canvas: Canvas, street: Street, rng: np.random.Generator) -> list[Act]:
    acts: list[Act] = []
    walk = street.road + street.verge + 0.6

    def add(x: float, z: float, paint: Callable[..., None], **options: Any) -> None:
        acts.append((z, lambda: paint(canvas, x, z, rng, **options)))

    for side in (-1, 1):
        for _ in range(int(rng.integers(4, 8))):
            z = 9.0 + 30.0 * float(rng.random()) ** 1.6
            add(side * float(rng.uniform(walk, street.front - 0.4)), z, people.person)
    for _ in range(int(rng.integers(1, 4))):
        add(
            float(rng.uniform(-0.8, 0.8)) * street.road,
            street.crossing + float(rng.uniform(0.5, 2.5)),
            people.person,
        )
    nearby = float(rng.choice([-1.0, 1.0]))
    add(nearby * float(rng.uniform(2.6, 3.6)), float(rng.uniform(7.5, 9.5)), people.bicycle, ridden=True)
    add(
        -nearby * float(rng.uniform(2.4, 3.4)),
        float(rng.uniform(8.5, 11)),
        people.motorcycle,
        ridden=bool(rng.random() < 0.6),
    )
    if rng.random() < 0.6:
        add(float(rng.uniform(-1.2, 1.2)), street.crossing + 1.0, people.bicycle, ridden=True)
    for side in (-1, 1):
        z = float(rng.uniform(8.5, 13))
        for k in range(int(rng.integers(1, 4))):
            add(side * (walk - 0.2), z + 0.8 * k, people.bicycle, ridden=False)
        z = float(rng.uniform(11, 20))
        add(side * (street.road - 0.5), z, people.motorcycle, ridden=False)
    return acts


def _finish(canvas: Canvas, height: int, width: int) -> tuple[Array, Array]:
    """Averages 2 x 2 pixels, sets the contrast, rounds to 8 bits; labels take one of the four."""
    rows = canvas.rgb[::2] + canvas.rgb[1::2]
    small = (rows[:, ::2] + rows[:, 1::2]) / 4
    shoulder = 0.72 + 0.28 * np.tanh((small - 0.72) / 0.28)
    toned = np.maximum(np.where(small < 0.72, small, shoulder), 0.0) ** 0.94
    picture = np.clip(np.rint(toned * 255), 0, 255).astype(np.uint8)
    return picture, np.ascontiguousarray(canvas.ids[::2, ::2])


def write_scenes(
    root: str | Path, *, train: int = 24, val: int = 6, height: int = 256, width: int = 512, seed: int = 0
) -> Path:
    """Writes a set of scenes in the Cityscapes layout and returns its root.

    A root that already holds this very set is left as it is; an interrupted set is written anew.

    Args:
        root: a folder that is new, empty, or holds scenes of the same arguments.
        train, val: scenes per split, at least 1. The validation scenes do not depend on `train`.
        height, width: pixels.
        seed: which set; sets of different seeds share no scene.

    Raises:
        SceneError: a bad number, or a root that holds anything else.
    """
    _check(seed, height, width)
    if min(train, val) < 1 or max(train, val) > _SPLIT:
        raise SceneError(f"scenes: train={train}, val={val}: both need to be in 1..{_SPLIT}")
    root = Path(root)
    wanted = {
        "generator": VERSION,
        "seed": seed,
        "train": train,
        "val": val,
        "height": height,
        "width": width,
    }
    names = list(_files(train, val, seed))
    if _complete(root, wanted, names):
        return root
    _store(root / STARTED, wanted)
    for folder, stem, scene_seed in names:
        picture, ids = scene(scene_seed, height, width)
        write_png(root / "leftImg8bit" / folder / f"{stem}_leftImg8bit.png", picture)
        write_png(root / "gtFine" / folder / f"{stem}_gtFine_labelIds.png", ids)
    os.replace(root / STARTED, root / MANIFEST)
    return root


def _files(train: int, val: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """(split/city, stem, scene seed) of every scene of a set."""
    for split, count, first in (("train", train, 0), ("val", val, _SPLIT)):
        for i in range(count):
            yield f"{split}/{CITY}", f"{CITY}_{seed:06d}_{i:06d}", 2 * _SPLIT * seed + first + i


def _complete(root: Path, wanted: dict[str, int], names: list[tuple[str, str, int]]) -> bool:
    """Whether the very set is there; raises where something else is."""
    if root.exists() and not root.is_dir():
        raise SceneError(f"root={root} is a file: give a new or empty folder")
    if not root.exists() or not any(root.iterdir()):
        return False
    found = {name: _read(root / name) for name in (MANIFEST, STARTED) if (root / name).is_file()}
    if not found:
        raise SceneError(f"root={root} holds files that are no built-in scenes: give a new or empty folder")
    for manifest in found.values():
        differs = [f"{k}={manifest.get(k)}" for k in wanted if manifest.get(k) != wanted[k]]
        if differs:
            raise SceneError(f"root={root} holds other built-in scenes ({', '.join(differs)}): give a new folder")
    pictures = [root / "leftImg8bit" / folder / f"{stem}_leftImg8bit.png" for folder, stem, _ in names]
    labels = [root / "gtFine" / folder / f"{stem}_gtFine_labelIds.png" for folder, stem, _ in names]
    return MANIFEST in found and all(path.is_file() for path in pictures + labels)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SceneError(f"{path} is no manifest of built-in scenes: give a new folder, or remove this one")
    return found


def _store(path: Path, manifest: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(partial, path)
