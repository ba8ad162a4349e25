"""What the built-in scenes are drawn with: a pinhole camera, light and weather, noise textures, shaded polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Colour = tuple[float, float, float] | Array
TILE = 512
NEAREST = 1.5  # metres: nothing is drawn closer to the camera

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE = 7, 8, 11, 12, 13, 17
TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN, SKY = 19, 20, 21, 22, 23
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 24, 25, 26, 27, 28, 31, 32, 33
STATIC = 4  # litter bins and the like: not a train class, so ignored (255) by the train ids


@lru_cache(maxsize=8)
def texture(kind: str) -> Array:
    """A tileable (512, 512) float32 noise texture, mean 0, standard deviation 1: "grain" (white) or "cloud" (1/f)."""
    white = np.random.default_rng(20240).standard_normal((TILE, TILE))
    if kind == "grain":
        return white.astype(np.float32)
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]
    radius = np.maximum(np.hypot(fy, fx), 1.0 / TILE)
    smooth = np.fft.irfft2(np.fft.rfft2(white) / radius**1.45, s=(TILE, TILE))
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


def nearest(kind: str, y: Array, x: Array) -> Array:
    """The texture's value in the cell (floor of y, floor of x): one value for each brick, slab or window."""
    row, column = np.floor(y).astype(np.int32) & (TILE - 1), np.floor(x).astype(np.int32) & (TILE - 1)
    return np.asarray(texture(kind).ravel().take(row * TILE + column))


def smooth(kind: str, y: Array, x: Array) -> Array:
    """The texture, interpolated linearly between its cells."""
    y0, x0 = np.floor(y).astype(np.int32), np.floor(x).astype(np.int32)
    ty, tx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
    row0, row1 = (y0 & (TILE - 1)) * TILE, ((y0 + 1) & (TILE - 1)) * TILE
    x1, x0 = (x0 + 1) & (TILE - 1), x0 & (TILE - 1)
    flat = texture(kind).ravel()
    top, low = flat.take(row0 + x0), flat.take(row1 + x0)
    top += (flat.take(row0 + x1) - top) * tx
    low += (flat.take(row1 + x1) - low) * tx
    return np.asarray(top + (low - top) * ty)


def step(low: float, high: float, value: Array) -> Array:
    """0 below `low`, 1 above `high`, a smooth cubic in between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def mix(a: Any, b: Any, t: Any) -> Array:
    """Linear interpolation: a at t = 0, b at t = 1."""
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


@dataclass(frozen=True)
class Weather:
    """Weather and time of day; colours are RGB, about 0 to 1."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    cloud: tuple[float, float, float]
    cover: float  # fraction of the sky under clouds
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    haze: float  # attenuation per metre
    night: bool = False  # whether lamps and windows are lit
    wet: float = 0.0  # strength of the reflections on the road


WEATHERS = {
    "noon": Weather((0.24, 0.47, 0.80), (0.71, 0.84, 0.95), (0.99, 0.99, 1.0), 0.42, (0.86, 0.80, 0.68),
                 (0.50, 0.55, 0.64), 0.004),
    "evening": Weather((0.36, 0.47, 0.70), (1.0, 0.80, 0.58), (1.0, 0.80, 0.66), 0.50, (1.05, 0.74, 0.43),
                    (0.47, 0.47, 0.59), 0.006),
    "overcast": Weather((0.62, 0.67, 0.73), (0.84, 0.87, 0.89), (0.76, 0.79, 0.83), 0.75, (0.10, 0.10, 0.10),
                     (0.82, 0.84, 0.88), 0.007),
    "dusk": Weather((0.16, 0.21, 0.44), (0.86, 0.57, 0.52), (0.55, 0.40, 0.52), 0.52, (0.22, 0.15, 0.14),
                 (0.47, 0.46, 0.60), 0.006, True),
    "rain": Weather((0.47, 0.53, 0.61), (0.76, 0.80, 0.83), (0.58, 0.63, 0.70), 0.80, (0.07, 0.07, 0.07),
                 (0.68, 0.72, 0.79), 0.010, True, 0.42),
    "morning": Weather((0.38, 0.60, 0.84), (0.95, 0.92, 0.84), (1.0, 0.97, 0.92), 0.35, (0.90, 0.78, 0.58),
                    (0.51, 0.55, 0.64), 0.007),
}  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera: x to the right, y up from the road, z ahead, in metres; pixels of the canvas."""

    cx: float
    horizon: float
    focal: float
    height: float

    def project(self, points: Array) -> Array:
        """(n, 3) metres -> (n, 2) pixels (u, v)."""
        z = np.maximum(points[:, 2], NEAREST)
        u = self.cx + self.focal * points[:, 0] / z
        return np.stack([u, self.horizon + self.focal * (self.height - points[:, 1]) / z], axis=1)


class Canvas:
    """An image (H, W, 3) float32 and label ids (H, W) uint8, both at twice the size of the finished scene."""

    def __init__(self, height: int, width: int, camera: Camera, weather: Weather, sun: Array) -> None:
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.ids = np.full((height, width), SKY, np.uint8)
        self.camera, self.weather, self.sun = camera, weather, sun

    def light(self, normal: Sequence[float], lit: Any = 1.0) -> Array:
        """RGB light (3,) on a surface of this unit normal; (n, 3) if `lit` is (n,), the fraction of sunlight."""
        facing = max(0.0, float(np.dot(self.sun, normal)))
        ambient = np.asarray(self.weather.ambient, np.float32) * (0.84 + 0.16 * normal[1])
        sun = np.asarray(self.weather.sun, np.float32) * facing
        return ambient + (sun * np.asarray(lit, np.float32)[:, None] if np.ndim(lit) else sun * lit)

    def haze(self, colour: Array, z: Any) -> Array:
        """A colour (..., 3) as seen through z metres of haze."""
        if not np.ndim(z):
            t = float(np.exp(-self.weather.haze * max(float(z) - 6.0, 0.0)))
            return np.asarray(colour * t + np.asarray(self.weather.horizon, np.float32) * (1 - t))
        keep = np.exp(-self.weather.haze * np.maximum(z - 6.0, 0.0), dtype=np.float32)
        return mix(self.weather.horizon, colour, keep[..., None])

    def poly(
        self, points: Array, colour: Colour | None, ident: int | None, *, z: float = 0.0, alpha: float = 1.0,
        down: float = 0.0, right: float = 0.0, grain: float = 0.0, hole: Array | None = None,
    ) -> None:  # fmt: skip
        """Fill a polygon (n, 2) of pixels.

        `colour` None fills the labels only, `ident` None the image only. `down` and `right` are the relative change of
        brightness along those directions, `grain` the strength of a texture; `hole` is a polygon that is left out.
        """
        h, w = self.ids.shape
        (u0, v0), (u1, v1) = points.min(0).tolist(), points.max(0).tolist()
        left, top = max(math.floor(u0), 0), max(math.floor(v0), 0)
        right_, bottom = min(math.ceil(u1) + 1, w), min(math.ceil(v1) + 1, h)
        if right_ <= left or bottom <= top or max(u1 - u0, v1 - v0) < 2.0:
            return
        image = Image.new("L", (right_ - left, bottom - top), 0)
        draw = ImageDraw.Draw(image)
        draw.polygon((points - (left, top)).ravel().tolist(), fill=1)
        if hole is not None:
            draw.polygon((hole - (left, top)).ravel().tolist(), fill=0)
        mask = np.asarray(image).view(bool)
        box = (slice(top, bottom), slice(left, right_))
        if ident is not None:
            self.ids[box][mask] = ident
        if colour is None:
            return
        paint = self.haze(np.asarray(colour, np.float32), z)
        if down or right or grain:
            paint = paint * self._gain(box, (u0, v0, u1, v1), down, right, grain)[mask][:, None]
        target = self.rgb[box]
        target[mask] = paint if alpha >= 1.0 else target[mask] * (1 - alpha) + paint * alpha

    @staticmethod
    def _gain(
        box: tuple[slice, slice],
        edges: tuple[float, float, float, float],
        down: float,
        right: float,
        grain: float,
    ) -> Array:
        v = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None]
        u = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :]
        u0, v0, u1, v1 = edges
        gain = 1 + down * ((v - v0) / max(v1 - v0, 1.0) - 0.5) + right * ((u - u0) / max(u1 - u0, 1.0) - 0.5)
        if grain:
            gain = gain + grain * nearest("grain", v / 2, u / 2) + grain * nearest("cloud", v * 3, u * 3)
        return np.asarray(gain, np.float32)

    def poly3(self, points: Array, colour: Colour | None, ident: int | None, **options: Any) -> None:
        """`poly` for a polygon (n, 3) in metres, seen through the haze of its mean distance."""
        z = float(points[:, 2].mean())
        if z > NEAREST:
            self.poly(self.camera.project(points), colour, ident, z=z, **options)

    def glow(self, u: float, v: float, radius: float, colour: Colour, strength: float) -> None:
        """Add a soft round light."""
        h, w = self.ids.shape
        v0, v1 = max(int(v - radius), 0), min(int(v + radius) + 1, h)
        u0, u1 = max(int(u - radius), 0), min(int(u + radius) + 1, w)
        if v1 <= v0 or u1 <= u0:
            return
        dv = (np.arange(v0, v1, dtype=np.float32)[:, None] - v) / radius
        du = (np.arange(u0, u1, dtype=np.float32)[None, :] - u) / radius
        fall = np.clip(1 - np.sqrt(dv * dv + du * du), 0, 1) ** 3 * strength
        box = self.rgb[v0:v1, u0:u1]
        box += (1.2 - np.minimum(box, 1.2)) * fall[..., None] * np.asarray(colour, np.float32)

    def soft_shadow(self, points: Array, strength: float, blur: float = 0.12) -> None:
        """Darken the ground under a convex polygon (n, 3) at y = 0, in three layers for a soft edge."""
        centre = points.mean(0)
        for k in range(3):
            ring = centre + (points - centre) * (1 + blur * (1 - k))
            self.poly3(ring, (0.02, 0.02, 0.04), None, alpha=strength * (0.3 + 0.1 * k))


def circle(u: float, v: float, ru: float, rv: float | None = None, n: int = 22) -> Array:
    """An ellipse as a polygon (n, 2)."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([u + ru * np.cos(t), v + (ru if rv is None else rv) * np.sin(t)], axis=1)
