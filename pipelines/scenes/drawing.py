"""One built-in street scene: where things stand, and in which order they are painted.

A scene is drawn, not photographed: a street in true perspective, in one of several weathers and times of day;
a set shows all 19 train classes. A seed gives the same pixels every time. Labels are Cityscapes label ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.scenes import houses, people, things, vehicles
from pipelines.scenes import street as street_
from pipelines.scenes.canvas import WEATHERS, Array, Camera, Canvas
from pipelines.scenes.solids import Pose
from pipelines.scenes.street import Street

VERSION = 1  # to be raised whenever the same seed would give other pixels
_SUN = {"noon": 1.1, "morning": 0.75, "evening": 0.55}


class SceneError(ValueError):
    """Scenes that cannot be written as asked: one line with the field or folder and the remedy."""


def scene(seed: int, height: int = 256, width: int = 512) -> tuple[Array, Array]:
    """Draw one street.

    Args:
        seed: 0 or more; three seeds in a row show each large vehicle (truck, bus, tram) twice.
        height, width: pixels, at least 64 x 96.

    Returns:
        picture, uint8 (height, width, 3) RGB, and label ids, uint8 (height, width).

    Raises:
        SceneError: a seed below 0, or a size too small to show anything.
    """
    check_size(seed, height, width)
    rng = np.random.default_rng([VERSION, seed])
    large = (("truck", "bus"), ("tram", "truck"), ("bus", "tram"))[seed % 3]
    canvas, street = _new_canvas(seed, height, width, "tram" in large, rng)
    street_.sky(canvas, rng)
    street_.skyline(canvas, rng)
    street_.ground(canvas, street, rng)
    houses.lots(canvas, street)
    street_.reflect(canvas, canvas.weather.wet)
    objects = _furniture(canvas, street, rng) + _traffic(canvas, street, large, rng) + _people(canvas, street, rng)
    for _, paint in sorted(objects, key=lambda placed: -placed[0]):  # the farthest first
        paint()
    return _finish(canvas)


def check_size(seed: int, height: int, width: int) -> None:
    if seed < 0 or height < 64 or width < 96:
        raise SceneError(
            f"scenes: seed={seed}, height={height}, width={width}: needs seed >= 0, height >= 64, width >= 96"
        )


def _new_canvas(seed: int, height: int, width: int, rails: bool, rng: np.random.Generator) -> tuple[Canvas, Street]:
    name = list(WEATHERS)[seed % len(WEATHERS)] if seed % 7 else "morning"
    focal = 1.45 * width  # the canvas is twice as large: a field of view of 69 degrees
    camera = Camera(
        cx=width * float(rng.uniform(0.84, 1.16)), horizon=2 * height * float(rng.uniform(0.43, 0.50)),
        focal=focal, height=float(rng.uniform(1.9, 2.4)),
    )  # fmt: skip
    side, rise = float(rng.choice([-1.0, 1.0])), _SUN.get(name, 0.8)
    sun = np.array([side * float(rng.uniform(0.45, 0.75)), rise, float(rng.uniform(-0.75, -0.35))])
    canvas = Canvas(2 * height, 2 * width, camera, WEATHERS[name], sun / np.linalg.norm(sun))
    return canvas, street_.plan(rng, rails=rails)


Object = tuple[float, Callable[[], None]]  # its distance, and what paints it


def _furniture(canvas: Canvas, street: Street, rng: np.random.Generator) -> list[Object]:
    objects: list[Object] = []
    kerb, zebra = street.road + 0.55, street.crossing

    def add(z: float, paint: Callable[..., None], *args: Any) -> None:
        objects.append((z, lambda: paint(canvas, *args)))

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
    return objects


def _traffic(canvas: Canvas, street: Street, large: tuple[str, str], rng: np.random.Generator) -> list[Object]:
    objects: list[Object] = []

    def add(paint: Callable[..., None], x: float, z: float, yaw: float) -> None:
        pose = Pose(x, z, yaw + float(rng.normal(0, 0.02)))
        objects.append((z, lambda: paint(canvas, pose, rng)))

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
    return objects


def _people(canvas: Canvas, street: Street, rng: np.random.Generator) -> list[Object]:
    objects: list[Object] = []
    walk = street.road + street.verge + 0.6

    def add(x: float, z: float, paint: Callable[..., None], **options: Any) -> None:
        objects.append((z, lambda: paint(canvas, x, z, rng, **options)))

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
    return objects


def _finish(canvas: Canvas) -> tuple[Array, Array]:
    """Average 2 x 2 pixels, set the contrast and round to 8 bits; of 2 x 2 labels take the first."""
    rows = canvas.rgb[::2] + canvas.rgb[1::2]
    small = (rows[:, ::2] + rows[:, 1::2]) / 4
    shoulder = 0.72 + 0.28 * np.tanh((small - 0.72) / 0.28)
    toned = np.maximum(np.where(small < 0.72, small, shoulder), 0.0) ** 0.94
    picture = np.clip(np.rint(toned * 255), 0, 255).astype(np.uint8)
    return picture, np.ascontiguousarray(canvas.ids[::2, ::2])
