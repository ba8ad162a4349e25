"""The sides of a built-in street: house fronts and gables, and gardens behind walls and fences."""

from __future__ import annotations

import numpy as np

from pipelines.scenes import canvas as sc
from pipelines.scenes.canvas import Array, Canvas, mix, nearest, smooth
from pipelines.scenes.street import Lot, Street, sunlit
from pipelines.scenes.things import crown

ROOF = ((0.45, 0.24, 0.19), (0.30, 0.31, 0.36), (0.38, 0.28, 0.25))


def lots(canvas: Canvas, street: Street) -> None:
    """Paint all lots, from far to near, each with its front and, above a lower neighbour, its gable."""
    for side in (-1, 1):
        own = [lot for lot in street.lots if lot.side == side]
        for i in range(len(own) - 1, -1, -1):
            lot, before = own[i], own[i - 1] if i else None
            if lot.built and before is not None and (not before.built or before.height < lot.height):
                _surface(canvas, street, lot, gable=True)
            if not lot.built:
                _garden(canvas, lot)
            _surface(canvas, street, lot, gable=False)


def _surface(canvas: Canvas, street: Street, lot: Lot, *, gable: bool) -> None:
    """Colour the pixels of a lot's front or gable, each traced back to a point in metres."""
    cam, (h, w) = canvas.camera, canvas.ids.shape
    face = lot.side * lot.x
    roof = 0.0 if lot.kind == "glass" or not lot.built else 1.9
    top = (lot.height if lot.built else (2.3 if lot.kind == "fence" else 2.0)) + (0.0 if gable else roof)
    if gable:
        corners = np.array([(face, 0, lot.z0), (face + lot.side * 10, top, lot.z0)])
    else:
        reach = max(abs(w - cam.cx), abs(cam.cx))
        z0 = max(lot.z0, cam.focal * lot.x / reach * 0.8)
        if lot.z1 <= z0:
            return
        corners = np.array([(face, y, z) for y in (0, top) for z in (z0, lot.z1)])
    spots = cam.project(corners)
    u0, v0 = np.maximum(np.floor(spots.min(0)).astype(int), 0)
    u1, v1 = np.minimum(np.ceil(spots.max(0)).astype(int) + 1, (w, h))
    if u1 <= u0 or v1 <= v0:
        return
    v, u = np.mgrid[v0:v1, u0:u1].astype(np.float32)
    du = u - cam.cx + 1e-3
    z = np.full_like(u, lot.z0) if gable else cam.focal * face / du
    y = cam.height - (v - cam.horizon) * z / cam.focal
    x = du * z / cam.focal
    along = (x - face) * lot.side if gable else z - lot.z0
    inside = (y >= 0) & (y < top) & (along >= 0) & (along < (10.0 if gable else lot.z1 - lot.z0)) & (z > 0)
    a, y, z, x = along[inside], y[inside], z[inside], x[inside]
    if a.size == 0:
        return
    pixel = 1.3 * z / cam.focal * (1.0 if gable else np.maximum(1.0, z / lot.x))  # metres a pixel covers
    near = np.clip(0.30 / pixel / 4, 0, 1).astype(np.float32)
    if lot.built:
        colour, ident = _house(canvas, lot, a, y, near, gable), sc.BUILDING
    elif lot.kind == "wall":
        colour, ident = _masonry(lot, a, y, near), sc.WALL
    else:
        colour, ident = _railing(lot, a, y, near), sc.FENCE
    normal = (0.0, 0.0, -1.0) if gable else (-float(lot.side), 0.0, 0.0)
    colour, mirror = colour[:, :3], colour[:, 3:]
    lit = sunlit(canvas, street, x, z, y)
    foot = 1 - 0.28 * np.exp(-y / 0.8)
    colour = colour * foot[:, None] * mix(canvas.light(normal, lit), 1.0, mirror)
    painted = canvas.rgb[v0:v1, u0:u1]
    solid = inside.copy()
    if ident == sc.FENCE:  # the gaps show the garden but, as in Cityscapes, are labelled fence
        solid[inside] = _bars(lot, a, y)
    painted[solid] = canvas.haze(colour, z)[solid[inside]]
    canvas.ids[v0:v1, u0:u1][inside] = ident


def _house(canvas: Canvas, lot: Lot, a: Array, y: Array, near: Array, gable: bool) -> Array:
    """Colour of a house front or gable; the fourth channel is the light that a pixel emits itself."""
    s, length = lot.seed, lot.z1 - lot.z0
    base = np.asarray(lot.colour, np.float32)
    if lot.kind == "brick":
        row = y / 0.20
        col = a / 0.46 + 0.5 * (np.floor(row) % 2)
        tone = 1 + 0.10 * np.clip(nearest("grain", row + s, col), -2, 2) * near
        mortar = ((np.mod(row, 1) < 0.16) | (np.mod(col, 1) < 0.08)).astype(np.float32) * near
        colour = mix(base * tone[:, None], (0.72, 0.68, 0.62), (mortar * 0.55)[:, None])
    else:
        tone = 1 + 0.05 * smooth("cloud", y * 4 + s, a * 9) + 0.03 * nearest("grain", y * 22, a * 22) * near
        colour = base * tone[:, None]
    colour = np.concatenate([colour, np.zeros((a.size, 1), np.float32)], axis=1).astype(np.float32)
    floor = (y - 0.5) / 3.2
    storey, b = np.floor(floor), np.mod(floor, 1)
    bays = 2 if gable else max(int((length - 0.8) / lot.bay), 1)
    bay = 3.6 if gable else lot.bay
    start = 0.8 if gable else (length - bays * bay) / 2
    col, f = np.floor((a - start) / bay), np.mod((a - start) / bay, 1)
    row_ok = (y < lot.height - 0.9) & (col >= 0) & (col < bays) & (y > (3.7 if gable else 0.5))
    band = np.mod(y - 0.55, 3.2) > 3.03
    colour[band & (y < lot.height), :3] *= 1.10 if lot.kind != "brick" else 1.22
    _windows(canvas, lot, colour, row_ok, storey, col, b, f)
    if not gable:
        _crown(lot, colour, a, y, near)
    return colour


def _windows(canvas: Canvas, lot: Lot, colour: Array, ok: Array, storey: Array, col: Array, b: Array, f: Array) -> None:
    """Paint frames, panes, sills, doors and shop windows into the colours of a house front."""
    shop = (storey < 1) & (lot.seed % 3 > 0) & (lot.kind != "glass")
    half = np.where(shop, 0.44, 0.46 if lot.kind == "glass" else 0.27)
    low = np.where(shop, 0.10, 0.12 if lot.kind == "glass" else 0.24)
    high = np.where(shop, 0.72, 0.90 if lot.kind == "glass" else 0.80)
    door = ok & (storey < 1) & (np.mod(col + lot.seed, 4) == 1)
    low = np.where(door, -0.15, low)
    dist = np.abs(f - 0.5)
    frame = ok & (dist < half) & (b > low) & (b < high)
    pane = frame & (dist < half - 0.035) & (b > low + 0.025) & (b < high - 0.02)
    bars = (dist < 0.018) | ((np.abs(b - (low + high) / 2 - 0.08) < 0.012) & ~shop)
    trim = (0.93, 0.91, 0.86) if lot.seed % 2 else (0.36, 0.30, 0.27)
    sill = ok & ~shop & ~door & (dist < half + 0.05) & (b <= low) & (b > low - 0.035)
    lintel = ok & (dist < half + 0.05) & (b >= high) & (b < high + 0.045) & (lot.kind == "brick")
    colour[frame, :3] = trim
    colour[sill | lintel, :3] = (0.84, 0.80, 0.73)
    glass = pane & ~bars
    pick = nearest("grain", storey + lot.seed, col + lot.seed * 3)[glass]
    up = np.clip((b[glass] - low[glass]) / (high - low)[glass], 0, 1)[:, None]
    weather = canvas.weather
    dark = np.asarray((0.10, 0.13, 0.17), np.float32) * (1 + 0.3 * np.clip(pick, -1.5, 2))[:, None]
    shine = (0.30 + 0.45 * up * (lot.kind == "glass") + 0.22 * np.mod(up + f[glass][:, None] * 0.6, 1)) * 0.8
    pane_colour = mix(dark, mix(weather.horizon, weather.zenith, up), shine)
    curtain = (pick > 0.2) & (pick < 0.75) & (dist[glass] > half[glass] * 0.45)
    pane_colour[curtain] = (0.66, 0.63, 0.58)
    if weather.night:
        lamp = (pick > 0.45) | (shop & (np.mod(col, 2) == 0))[glass]
        pane_colour[lamp] = mix((1.0, 0.72, 0.36), (1.0, 0.88, 0.62), up[lamp])
    pane_colour *= 1 - 0.45 * (1 - np.clip((1 - up) / 0.07, 0, 1))
    colour[glass, :3], colour[glass, 3] = pane_colour, 0.8
    wood = door & pane
    colour[wood, :3], colour[wood, 3] = (
        np.asarray(((0.24, 0.33, 0.28), (0.40, 0.22, 0.16))[lot.seed % 2]),
        0.0,
    )
    sign = shop & ok & (b > 0.76) & (b < 0.93)
    colour[sign, :3] = ((0.16, 0.28, 0.38), (0.55, 0.16, 0.15), (0.18, 0.34, 0.24), (0.78, 0.62, 0.28))[lot.seed % 4]
    letters = sign & (b > 0.805) & (b < 0.885) & (dist < 0.3) & (nearest("grain", f * 24 + col * 31, storey) > -0.2)
    colour[letters, :3] = (0.95, 0.92, 0.82)
    awning = shop & ok & (b > 0.60) & (b <= 0.76) & (lot.seed % 5 < 2)
    stripes = np.mod(f * 7, 1) < 0.5
    colour[awning, :3] = np.where(stripes[awning, None], (0.92, 0.89, 0.82), (0.68, 0.22, 0.19))
    colour[awning, 3] = 0.0


def _crown(lot: Lot, colour: Array, a: Array, y: Array, near: Array) -> None:
    """Paint cornice, tiled roof with dormers, and downpipe."""
    h, length = lot.height, lot.z1 - lot.z0
    colour[(y > h - 0.45) & (y < h), :3] *= 1.12
    colour[(y > h - 0.58) & (y <= h - 0.45), :3] *= 0.55
    roof = y >= h
    tile = np.asarray(ROOF[lot.seed % 3], np.float32)
    tone = 1 + 0.13 * nearest("grain", y * 5, a * 3.5 + lot.seed) * near - 0.3 * (np.mod(y, 0.22) < 0.05) * near
    colour[roof, :3] = (tile * tone[:, None])[roof]
    dormer = roof & (np.abs(np.mod(a, 4.4) - 2.2) < 0.6) & (y < h + 1.4)
    colour[dormer, :3] = (0.82, 0.79, 0.73)
    pane = dormer & (np.abs(np.mod(a, 4.4) - 2.2) < 0.4) & (y > h + 0.35) & (y < h + 1.2)
    colour[pane, :3] = (0.20, 0.25, 0.31)
    pipe = (np.abs(a - length + 0.25) < 0.06) & (y < h)
    colour[pipe, :3] = (0.30, 0.30, 0.30)


def _masonry(lot: Lot, a: Array, y: Array, near: Array) -> Array:
    """Colour of a garden wall of rough pale stones under a coping."""
    row = y / 0.30
    col = a / 0.55 + 0.37 * np.floor(row) + 0.06 * smooth("cloud", y * 9, a * 9)
    stone = np.clip(nearest("grain", row + lot.seed, col), -1.8, 1.8)
    tone = 0.80 + 0.14 * stone * np.clip(near * 2, 0.3, 1) + 0.05 * nearest("grain", y * 30, a * 30) * near
    joint = (np.mod(row, 1) < 0.11) | (np.mod(col, 1) < 0.07)
    tone = np.where(joint, tone * 0.55, tone)
    tone = np.where(y > 1.84, 1.05, np.where(y > 1.79, 0.45, tone))
    colour = tone[:, None] * mix((0.68, 0.60, 0.47), (0.62, 0.58, 0.52), np.clip(stone, 0, 1)[:, None])
    return np.concatenate([colour, np.zeros((a.size, 1))], axis=1).astype(np.float32)


def _bars(lot: Lot, a: Array, y: Array) -> Array:
    """Which pixels of a fence are solid: pales, two rails, posts."""
    pale = (np.mod(a, 0.30) < 0.13) & (y > 0.12) & (y < 2.12 + 0.12 * (np.mod(a, 0.30) > 0.045))
    rail = (np.abs(y - 0.40) < 0.07) | (np.abs(y - 1.80) < 0.07)
    return np.asarray(pale | rail | (np.mod(a, 2.7) < 0.2))


def _railing(lot: Lot, a: Array, y: Array, near: Array) -> Array:
    """Colour of a fence: dark green iron or weathered wood."""
    base = np.asarray(((0.16, 0.24, 0.22), (0.50, 0.36, 0.24))[lot.seed % 2], np.float32)
    tone = 1 + 0.12 * nearest("grain", y * 2, a / 0.30) * near - 0.35 * (np.mod(a, 0.30) > 0.09)
    colour = base * tone[:, None]
    return np.concatenate([colour, np.zeros((a.size, 1))], axis=1).astype(np.float32)


def _garden(canvas: Canvas, lot: Lot) -> None:
    """Paint shrubs and trees behind the wall or fence of a garden."""
    rng = np.random.default_rng(lot.seed)
    x = lot.side * (lot.x + 4.5)
    for z in np.arange(lot.z1 - 0.5, lot.z0, -2.6):
        if z > 6:
            crown(canvas, x, 1.2, float(z), 1.8, 1.5, rng)
    middle = (lot.z0 + lot.z1) / 2
    if middle > 8:
        crown(canvas, x + lot.side, 5.0, middle + 1, 2.9, 2.6, rng)
