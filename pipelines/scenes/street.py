"""The ground plan of a built-in scene, its sky and its ground, painted by tracing pixels back to points in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.scenes import canvas as sc
from pipelines.scenes.canvas import Array, Canvas, mix, nearest, smooth, step

FAR = 130.0
BRICK = ((0.66, 0.33, 0.25), (0.58, 0.29, 0.24), (0.72, 0.45, 0.33), (0.55, 0.36, 0.30))
PLASTER = ((0.88, 0.80, 0.64), (0.85, 0.68, 0.52), (0.80, 0.82, 0.80), (0.74, 0.64, 0.58), (0.90, 0.87, 0.80),
           (0.78, 0.58, 0.50), (0.70, 0.74, 0.70))  # fmt: skip


@dataclass(frozen=True)
class Lot:
    """A plot along the street: a house, or a garden behind a wall or a fence."""

    side: int  # -1 left, 1 right
    x: float  # distance of its front from the middle of the road
    z0: float
    z1: float
    kind: str  # "brick", "plaster", "glass", "wall" or "fence"
    height: float
    colour: tuple[float, float, float]
    bay: float  # metres from window to window
    seed: int

    @property
    def built(self) -> bool:
        """Whether a house stands here."""
        return self.kind in ("brick", "plaster", "glass")


@dataclass(frozen=True)
class Street:
    """Distances on the ground, in metres from the middle of the road, and the lots."""

    road: float
    verge: float  # width of the grass between road and pavement
    front: float
    crossing: float  # where the zebra begins
    rails: float | None  # middle of the track, or none
    lots: tuple[Lot, ...]

    def roofline(self, side: int, z: Array) -> Array:
        """Height of the lots on one side at the distances z, for their shadows."""
        table = np.zeros(int(FAR * 2), np.float32)
        for lot in self.lots:
            if lot.side == side:
                table[int(lot.z0 * 2) : int(lot.z1 * 2)] = lot.height if lot.built else 1.8
        return np.asarray(table[np.clip(z * 2, 0, table.size - 1).astype(np.int32)])


def plan(rng: np.random.Generator, *, rails: bool) -> Street:
    """Plan a street; each has at least one wall and one fence near the camera."""
    road = float(rng.uniform(4.6, 5.6)) + (0.8 if rails else 0.0)
    verge = float(rng.uniform(0.9, 1.5))
    front = road + verge + float(rng.uniform(3.8, 5.0))
    lots: list[Lot] = []
    for side, fence_first in zip((-1, 1), rng.permutation([True, False]), strict=True):
        z, n, garden = 1.0, 0, int(rng.integers(1, 3))
        while z < FAR:
            kind = str(rng.choice(["brick", "plaster", "plaster", "glass"], p=[0.34, 0.3, 0.22, 0.14]))
            if n == garden:
                kind = "fence" if fence_first else "wall"
            elif n > garden + 1 and rng.random() < 0.22:
                kind = str(rng.choice(["fence", "wall"]))
            length = float(rng.uniform(11, 17)) if kind in ("wall", "fence") else float(rng.uniform(8, 17))
            palette = BRICK if kind == "brick" else PLASTER
            colour = palette[int(rng.integers(len(palette)))]
            height = float(rng.integers(2, 6)) * 3.2 + 1.0
            bay = float(rng.uniform(1.9, 2.8))
            first = 8.0 if n == 0 else length
            lots.append(Lot(int(side), front, z, z + first, kind, height, colour, bay, int(rng.integers(400))))
            z, n = z + first, n + 1
    crossing = float(rng.uniform(12, 19))
    return Street(road, verge, front, crossing, -1.9 if rails else None, tuple(lots))


def sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a gradient, clouds on a plane overhead, the sun's glow and a hazy line of trees at the end."""
    cam, weather = canvas.camera, canvas.weather
    rows = int(cam.horizon) + 1
    v, u = np.mgrid[0:rows, 0 : canvas.ids.shape[1]].astype(np.float32)
    up = (cam.horizon - v) / cam.focal + 0.03
    t = (v[:, :1] / rows)[..., None]
    out = mix(weather.zenith, weather.horizon, t**1.4)
    scale, dx, dy = 26.0, float(rng.uniform(0, 512)), float(rng.uniform(0, 512))
    cu, cv = (u - cam.cx) / cam.focal / (up + 0.12) * scale + dx, 1 / (up + 0.12) * scale * 0.8 + dy
    shape = smooth("cloud", cv, cu) * 0.8 + smooth("cloud", cv * 3.1, cu * 3.1) * 0.25
    threshold = 1.3 - 2.3 * weather.cover
    cover = step(threshold, threshold + 1.3, shape) * step(0.02, 0.16, up)
    shade = 0.82 + 0.2 * step(-0.8, 1.2, smooth("cloud", cv * 3.1 + 9, cu * 3.1) + (shape - threshold) * 0.7)
    out = mix(out, np.asarray(weather.cloud, np.float32) * shade[..., None], (cover * 0.93)[..., None])
    canvas.rgb[:rows] = out
    canvas.glow(cam.cx + float(canvas.sun[0]) * cam.focal, cam.horizon * 0.55, cam.focal * 0.7, weather.sun, 0.33)


def skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the trees and houses at the far end of the street, pale with distance."""
    cam, width = canvas.camera, canvas.ids.shape[1]
    x = -60.0
    while x < 60:
        w, h = float(rng.uniform(5, 11)), float(rng.uniform(5, 13))
        box = np.array([(x, 0, FAR), (x + w, 0, FAR), (x + w, h, FAR), (x, h, FAR)])
        tone = PLASTER[int(rng.integers(len(PLASTER)))]
        canvas.poly3(box, np.asarray(tone) * canvas.light((0, 0, -1)) * 0.8, sc.BUILDING, grain=0.02)
        x += w
    u = np.arange(width, dtype=np.float32)
    top = cam.horizon - cam.focal / FAR * (4.5 + 2.2 * smooth("cloud", u * 0 + 7, u / 9))
    ridge = np.concatenate([np.stack([u, top], 1), [(width, cam.horizon + 2), (0, cam.horizon + 2)]])
    green = np.asarray((0.24, 0.36, 0.17)) * canvas.light((0, 0.7, -0.7))
    canvas.poly(ridge, green, sc.VEGETATION, z=105, grain=0.12)


def ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Paint road with markings, kerbs, grass verges, paving slabs and gardens, with the shadows of the houses."""
    cam = canvas.camera
    first = int(cam.horizon) + 2
    v, u = np.mgrid[first : canvas.ids.shape[0], 0 : canvas.ids.shape[1]].astype(np.float32)
    z = cam.focal * cam.height / (v - cam.horizon)
    x = (u - cam.cx) * z / cam.focal
    near = np.clip(26.0 / z, 0, 1.0)  # fine texture fades before it would alias
    off = float(rng.uniform(0, 400))
    patch = smooth("cloud", z * 6 + off, x * 9)
    grain = nearest("grain", z * 24 + off, x * 34)
    ids, out = np.full(z.shape, sc.ROAD, np.uint8), _asphalt(street, x, z, near, patch, grain, off)
    ax = np.abs(x)
    kerb, slabs = street.road, street.road + street.verge + 0.2
    for mask, ident, colour in (
        ((ax > kerb) & (ax <= kerb + 0.2), sc.SIDEWALK, lambda m: _kerb(z[m], grain[m])),
        ((ax > kerb + 0.2) & (ax <= slabs), sc.TERRAIN, lambda m: _grass(x[m], z[m], near[m], off)),
        ((ax > slabs) & (ax <= street.front), sc.SIDEWALK, lambda m: _slabs(x[m], z[m], near[m], grain[m])),
        (ax > street.front, sc.TERRAIN, lambda m: _grass(x[m], z[m], near[m], off)),
    ):
        ids[mask] = ident
        out[mask] = colour(mask)
    across = (ids == sc.TERRAIN) & (ax < slabs) & (np.abs(z - street.crossing - 1.5) < 2.2)
    ids[across] = sc.SIDEWALK
    out[across] = _slabs(x[across], z[across], near[across], grain[across])
    gutter = 1 - 0.35 * np.exp(-(((ax - kerb + 0.12) / 0.14) ** 2)) - 0.3 * np.exp(-((ax - street.front) ** 2) * 3)
    lit = sunlit(canvas, street, x, z)
    shade = canvas.light((0, 1, 0), lit.ravel()).reshape(out.shape)
    canvas.rgb[first:] = canvas.haze(out * gutter[..., None] * shade, z)
    canvas.ids[first:] = ids


def _asphalt(street: Street, x: Array, z: Array, near: Array, patch: Array, grain: Array, off: float) -> Array:
    tone = 0.46 + 0.035 * patch + 0.045 * near * grain
    lane = np.abs(np.abs(x) - street.road * 0.5)
    tone = tone - 0.045 * np.exp(-(((lane - 0.75) / 0.3) ** 2))
    crack = np.abs(smooth("cloud", z * 2.2 + 90 + off, x * 3.4 + off))
    tone = np.where((crack < 0.018) & (patch < 0.1) & (z < 30), tone * 0.62, tone)
    worn = 0.80 + 0.12 * np.clip(patch, -2, 2) * near
    dash = (np.abs(x) < 0.09) & (np.mod(z, 4.5) < 2.4)
    edge = np.abs(np.abs(x) - street.road + 0.38) < 0.06
    zebra = (np.abs(z - street.crossing - 1.5) < 1.5) & (np.mod(x + 0.25, 1.0) < 0.5) & (np.abs(x) < street.road - 0.2)
    stop = (np.abs(z - street.crossing + 1.1) < 0.2) & (x > 0) & (x < street.road - 0.4)
    calm = np.abs(z - street.crossing - 0.7) > 2.9
    tone = np.where((dash & calm) | (edge & calm) | zebra | stop, worn, tone)
    hole = (x - 1.9 + off % 1.7) ** 2 + (np.mod(z + off, 24) - 12) ** 2
    tone = np.where(hole < 0.13, np.where(hole > 0.095, 0.20, 0.30 + 0.05 * np.sign(np.sin(x * 40))), tone)
    out = tone[..., None] * np.asarray((1.0, 0.995, 1.0), np.float32)
    if street.rails is not None:
        bed = np.abs(x - street.rails) < 1.25
        out[bed] *= np.asarray((1.06, 1.0, 0.93), np.float32)
        rail = np.abs(np.abs(x - street.rails) - 0.72)
        out[rail < 0.11] = 0.20
        out[rail < 0.05] = (0.74, 0.75, 0.78)
    return np.asarray(out, np.float32)


def _kerb(z: Array, grain: Array) -> Array:
    tone = 0.68 + 0.03 * grain - 0.25 * (np.mod(z, 1.0) < 0.06)
    return np.asarray(tone[:, None] * np.asarray((1, 0.99, 0.96)), np.float32)


def _slabs(x: Array, z: Array, near: Array, grain: Array) -> Array:
    row = z / 0.7
    col = x / 0.7 + 0.5 * (np.floor(row) % 2)
    tone = (
        0.62 + 0.045 * np.clip(nearest("grain", row, col), -1.6, 1.6) * np.clip(near * 1.6, 0, 1) + 0.025 * grain * near
    )
    joint = (np.mod(row, 1) < 0.07) | (np.mod(col, 1) < 0.07)
    tone = np.where(joint, tone * (1 - 0.32 * near), tone)
    return np.asarray(tone[:, None] * np.asarray((1.04, 0.97, 0.90)), np.float32)


def _grass(x: Array, z: Array, near: Array, off: float) -> Array:
    blades = nearest("grain", z * 13 + off, x * 30) * near
    tone = 1 + 0.20 * smooth("cloud", z * 5 + off, x * 8) + 0.26 * blades
    colour = mix((0.36, 0.50, 0.16), (0.50, 0.52, 0.22), step(0.2, 1.8, smooth("cloud", z * 3, x * 3 + 50))[:, None])
    return np.asarray(colour * np.clip(tone, 0.35, 1.7)[:, None], np.float32)


def sunlit(canvas: Canvas, street: Street, x: Array, z: Array, y: Any = 0.0) -> Array:
    """1 where the sun reaches (x, y, z), 0 in the shadow of the houses, with a soft edge."""
    lx, ly, lz = (float(c) for c in canvas.sun)
    side = 1 if lx > 0 else -1
    t = np.maximum(street.front - side * x, 0.0) / max(abs(lx), 0.05)
    return step(-0.12, 0.12, y + t * ly - street.roofline(side, z + t * lz))


def reflect(canvas: Canvas, strength: float) -> None:
    """Add the reflections on wet road and pavement, smeared downwards."""
    if strength <= 0:
        return
    horizon = int(canvas.camera.horizon)
    rows = min(canvas.ids.shape[0] - horizon - 2, horizon)
    mirror = canvas.rgb[horizon - rows : horizon][::-1].copy()
    total = np.cumsum(np.pad(mirror, ((12, 12), (0, 0), (0, 0)), mode="edge"), axis=0)
    mirror = ((total[24:] - total[:-24]) / 24).astype(np.float32)
    wet = canvas.ids[horizon + 2 : horizon + 2 + rows, :, None] == sc.ROAD
    area = canvas.rgb[horizon + 2 : horizon + 2 + rows]
    n = mirror.shape[0]
    area[:n] = np.where(wet[:n], area[:n] * (1 - strength * 0.75) + mirror * strength * 0.8, area[:n])
