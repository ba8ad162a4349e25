"""Street furniture of the built-in scenes: trees, lamps, traffic lights, signs, litter bins, and their shadows."""

from __future__ import annotations

import numpy as np

from pipelines.scenes import canvas as sc
from pipelines.scenes.canvas import NEAREST, Array, Canvas, Colour, mix, nearest, smooth, step


def crown(canvas: Canvas, x: float, y: float, z: float, rx: float, ry: float, rng: np.random.Generator) -> None:
    """Paint a ball of leaves around (x, y, z), radii in metres, lit from the sun's side, ragged at the rim."""
    cam, (h, w) = canvas.camera, canvas.ids.shape
    scale = cam.focal / max(z, NEAREST)
    u, v = cam.cx + x * scale, cam.horizon + (cam.height - y) * scale
    u0, u1 = max(int(u - 1.3 * rx * scale), 0), min(int(u + 1.3 * rx * scale) + 1, w)
    v0, v1 = max(int(v - 1.3 * ry * scale), 0), min(int(v + 1.3 * ry * scale) + 1, h)
    if u1 <= u0 or v1 <= v0:
        return
    across = (np.arange(u0, u1, dtype=np.float32) - u)[None, :] / (rx * scale)
    upward = (v - np.arange(v0, v1, dtype=np.float32))[:, None] / (ry * scale)
    square = across * across + upward * upward
    rows, columns = np.nonzero(square < 1.5)
    dx, dy, square = across[0, columns], upward[rows, 0], square[rows, columns]
    offset = float(rng.uniform(0, 500))
    mx, my = dx * rx, dy * ry
    lump = smooth("cloud", my * 14 + offset, mx * 14)
    radius = np.sqrt(square) + 0.11 * lump + 0.05 * smooth("grain", my * 8 + offset, mx * 8)
    solid = (radius < 1.0) & ~((radius > 0.72) & (lump > 1.0))
    if not solid.any():
        return
    at = (rows[solid] + v0, columns[solid] + u0)
    dx, dy, lump, mx, my = dx[solid], dy[solid], lump[solid], mx[solid], my[solid]
    fine = max(11.0, scale / 3)
    leaf = 0.8 * smooth("grain", my * 9 + offset, mx * 9) + 0.7 * nearest("grain", my * fine, mx * fine)
    tilt = 0.55 * dx * float(np.sign(canvas.sun[0])) + 0.75 * dy
    bright = 0.46 + 0.34 * tilt - 0.20 * lump + 0.13 * leaf * min(1.0, 24 / z)
    hue = float(rng.uniform(0, 1))
    deep, pale = (
        mix((0.07, 0.17, 0.06), (0.12, 0.18, 0.05), hue),
        mix((0.42, 0.60, 0.20), (0.62, 0.60, 0.20), hue),
    )
    colour = mix(deep, pale, np.clip(bright, 0, 1.1)[:, None])
    lit = np.asarray(canvas.weather.sun, np.float32) * 0.75 * step(0.2, 0.8, bright)[:, None]
    canvas.rgb[at] = canvas.haze(colour * (np.asarray(canvas.weather.ambient) + lit), z)
    canvas.ids[at] = sc.VEGETATION


def tree(canvas: Canvas, x: float, z: float, height: float, rng: np.random.Generator) -> None:
    """Paint a street tree: shadow, trunk, branches, three or four balls of leaves."""
    shadow(canvas, x, z, 1.7, height * 0.62)
    bark = np.asarray((0.34, 0.27, 0.21)) * canvas.light((0, 0, -1)) * 1.1
    fork = height * 0.5
    upright(canvas, x, z, 0.0, fork + 0.6, 0.17, bark, sc.VEGETATION, grain=0.10)
    for dx in (-0.9, 0.8):
        line3(canvas, (x, fork, z), (x + dx, fork + 1.4, z), 0.14, bark, sc.VEGETATION)
    r = height * 0.29
    for dx, dy, k in ((-0.75, 0.62, 0.78), (0.8, 0.66, 0.75), (0.05, 0.86, 0.85), (0.1, 0.62, 0.9)):
        crown(canvas, x + dx * r, height * dy, z, r * k * 1.1, r * k * 0.95, rng)


def shadow(canvas: Canvas, x: float, z: float, radius: float, reach: float) -> None:
    """Paint the shadow of an object of this radius and height: a dim spot, and a streak if the sun shines."""
    t = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    pool = np.stack([x + radius * 0.8 * np.cos(t), 0 * t, z + radius * 0.8 * np.sin(t)], axis=1)
    canvas.soft_shadow(pool, 0.35, blur=0.25)
    if max(canvas.weather.sun) < 0.5:
        return
    lx, ly, lz = (float(c) for c in canvas.sun)
    cast = np.array([-lx, 0.0, -lz]) / max(ly, 0.2) * reach
    pool[:, 0] = x + cast[0] * (0.5 + 0.5 * np.cos(t)) + radius * 0.55 * np.sin(t) * abs(lz + 0.3)
    pool[:, 2] = z + cast[2] * (0.5 + 0.5 * np.cos(t)) + radius * 0.75 * np.sin(t)
    canvas.soft_shadow(pool, 0.55, blur=0.06)


def upright(
    canvas: Canvas, x: float, z: float, y0: float, y1: float, width: float, colour: Colour, ident: int | None,
    *, grain: float = 0.0,
) -> None:  # fmt: skip
    """Paint a post, shaded as round."""
    half = width / 2
    side = float(np.sign(canvas.sun[0])) * 0.55
    box = np.array([(x - half, y0, z), (x + half, y0, z), (x + half, y1, z), (x - half, y1, z)])
    canvas.poly3(box, colour, ident, right=side, grain=grain)


def line3(
    canvas: Canvas, a: tuple[float, float, float], b: tuple[float, float, float], width: float,
    colour: Colour, ident: int | None,
) -> None:  # fmt: skip
    """Paint a straight bar between two points, `width` in metres."""
    ends = canvas.camera.project(np.array([a, b]))
    along = ends[1] - ends[0]
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6)
    across *= width / 2 * canvas.camera.focal / max(a[2], NEAREST)
    canvas.poly(
        np.array([ends[0] - across, ends[0] + across, ends[1] + across, ends[1] - across]),
        colour,
        ident,
        z=a[2],
    )


def lamp(canvas: Canvas, x: float, z: float) -> None:
    """Paint a street lamp that leans over the road; it is lit at night."""
    shadow(canvas, x, z, 0.2, 6.2)
    iron = np.asarray((0.30, 0.33, 0.35)) * canvas.light((0, 0, -1)) * 1.15
    upright(canvas, x, z, 0.0, 0.9, 0.24, iron, sc.POLE)
    upright(canvas, x, z, 0.9, 6.3, 0.19, iron, sc.POLE)
    to = x - np.sign(x) * 1.5
    line3(canvas, (x, 6.2, z), (to, 6.55, z), 0.11, iron, sc.POLE)
    line3(canvas, (to + 0.38, 6.52, z), (to - 0.38, 6.50, z), 0.2, iron, sc.POLE)
    if canvas.weather.night:
        line3(canvas, (to + 0.3, 6.43, z), (to - 0.3, 6.41, z), 0.1, (1.0, 0.93, 0.74), None)
        u, v = canvas.camera.project(np.array([(to, 6.4, z)]))[0]
        canvas.glow(u, v, 1.7 * canvas.camera.focal / z, (1.0, 0.80, 0.48), 0.9)


def traffic_light(canvas: Canvas, x: float, z: float, on: int) -> None:
    """Paint a traffic light on a pole; `on` 0, 1, 2 for red, amber, green."""
    shadow(canvas, x, z, 0.2, 3.4)
    grey = np.asarray((0.45, 0.47, 0.48)) * canvas.light((0, 0, -1))
    upright(canvas, x, z, 0.0, 3.4, 0.18, grey, sc.POLE)
    back = np.array([(x - 0.27, 2.35, z), (x + 0.27, 2.35, z), (x + 0.27, 3.75, z), (x - 0.27, 3.75, z)])
    canvas.poly3(back, (0.88, 0.86, 0.80), sc.TRAFFIC_LIGHT)
    canvas.poly3(x_about(back, 0.84, 0.94), (0.09, 0.10, 0.10), sc.TRAFFIC_LIGHT)
    for k, colour in enumerate(((1.0, 0.18, 0.12), (1.0, 0.70, 0.12), (0.18, 0.95, 0.55))):
        t = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        y = 3.48 - 0.43 * k
        disc = np.stack([x + 0.17 * np.cos(t), y + 0.17 * np.sin(t), 0 * t + z], axis=1)
        canvas.poly3(disc, np.asarray(colour) * (1.0 if k == on else 0.24), sc.TRAFFIC_LIGHT)
        if k == on:
            u, v = canvas.camera.project(np.array([(x, y, z)]))[0]
            canvas.glow(u, v, (1.1 if canvas.weather.night else 0.6) * canvas.camera.focal / z, colour, 0.6)


def x_about(points: Array, kx: float, ky: float) -> Array:
    """Points scaled about their centre, sideways by kx and upwards by ky."""
    return points.mean(0) + (points - points.mean(0)) * np.array([kx, ky, 1.0])


def sign(canvas: Canvas, x: float, z: float, kind: int) -> None:
    """Paint a road sign on a pole: ban, warning, order, parking, stop."""
    shadow(canvas, x, z, 0.15, 2.4)
    grey = np.asarray((0.55, 0.56, 0.57)) * canvas.light((0, 0, -1))
    upright(canvas, x, z, 0.0, 2.4, 0.14, grey, sc.POLE)
    light = np.minimum(canvas.light((0, 0, -1)) * 1.15 + 0.12, 1.1)
    red, white, blue = (0.78, 0.10, 0.12), (0.96, 0.95, 0.93), (0.08, 0.30, 0.68)
    n, turn, r = (
        (24, 0.0, 0.42),
        (3, np.pi / 2, 0.52),
        (24, 0.0, 0.42),
        (4, np.pi / 4, 0.50),
        (8, np.pi / 8, 0.42),
    )[kind]
    t = np.linspace(0, 2 * np.pi, n, endpoint=False) + turn
    plate = np.stack([x + r * np.cos(t), 2.6 + r * np.sin(t), 0 * t + z - 0.05], axis=1)
    outer, inner = ((red, white), (red, white), (white, blue), (white, blue), (white, red))[kind]
    canvas.poly3(plate, np.asarray(outer) * light, sc.TRAFFIC_SIGN)
    canvas.poly3(
        x_about(plate, 0.70 if kind < 2 else 0.87, 0.70 if kind < 2 else 0.87),
        np.asarray(inner) * light,
        sc.TRAFFIC_SIGN,
    )
    mark = np.asarray((0.12, 0.12, 0.14) if kind < 2 else white) * light
    tall = ((0.06, 0.2), (0.04, 0.16), (0.07, 0.24), (0.10, 0.26), (0.26, 0.06))[kind]
    box = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * tall
    canvas.poly3(np.concatenate([box + np.array((x, 2.58)), np.full((4, 1), z - 0.06)], axis=1), mark, sc.TRAFFIC_SIGN)


def bin_(canvas: Canvas, x: float, z: float) -> None:
    """Paint a litter bin, which is no train class."""
    shadow(canvas, x, z, 0.4, 0.9)
    upright(canvas, x, z, 0.0, 0.85, 0.5, np.asarray((0.22, 0.36, 0.26)) * canvas.light((0, 0, -1)), sc.STATIC)
    upright(canvas, x, z, 0.85, 0.95, 0.56, np.asarray((0.16, 0.17, 0.18)) * canvas.light((0, 1, 0)), sc.STATIC)
