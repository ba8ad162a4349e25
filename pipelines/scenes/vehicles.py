"""Vehicles of the built-in scenes: cars, buses, trams, trucks."""

from __future__ import annotations

import numpy as np

from pipelines.scenes import canvas as sc
from pipelines.scenes.canvas import Canvas, Colour
from pipelines.scenes.solids import GLASS, Edge, Pose, Solid

PAINT = ((0.62, 0.10, 0.10), (0.15, 0.26, 0.46), (0.78, 0.79, 0.80), (0.20, 0.21, 0.23), (0.90, 0.89, 0.86),
         (0.32, 0.42, 0.40), (0.72, 0.55, 0.25), (0.45, 0.58, 0.70))  # fmt: skip


def car(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Paint a hatchback, saloon or estate car."""
    colour = PAINT[int(rng.integers(len(PAINT)))]
    rear = [
        [(-2.02, 0.30), (-2.06, 0.66), (-1.96, 0.96), (-1.52, 1.43)],
        [(-2.20, 0.30), (-2.24, 0.66), (-2.14, 0.96), (-1.62, 1.00), (-1.05, 1.41)],
        [(-2.16, 0.30), (-2.20, 0.66), (-2.12, 0.96), (-1.92, 1.45)],
    ][int(rng.integers(3))]
    front = [(0.22, 1.46), (1.02, 0.98), (1.92, 0.80), (2.08, 0.62), (2.10, 0.30)]
    s = Solid(canvas, pose, rear + front, 1.80, sc.CAR, waist=0.95, taper=0.40)
    s.ground_shadow(4.2, 1.3)
    shown = s.body(colour)
    glass_rear, glass_front = (rear[-2], rear[-1]), (front[0], front[1])
    for a, b, n in shown:
        if (a, b) == glass_rear or (a, b) == glass_front:
            s.pane(s.strip(a, b, 0.10, 0.88, -0.88, 0.88), n)
    _ends(s, shown, rear[1][1])
    for right, n in s.flanks():
        s.put(s.side([(-2.0, 0.30), (2.05, 0.30), (2.05, 0.38), (-2.0, 0.38)], right), (0.12, 0.12, 0.13), n)
        left = rear[-2][0] * 0.72 + rear[-1][0] * 0.28 + 0.12
        s.pane(s.side([(left + 0.1, 1.02), (-0.46, 1.02), (-0.46, 1.36), (rear[-1][0] + 0.12, 1.36)], right), n)
        s.pane(s.side([(-0.36, 1.02), (0.80, 1.02), (0.26, 1.36), (-0.36, 1.36)], right), n)
        for f in (-0.42, 0.72):
            s.put(
                s.side([(f, 0.40), (f + 0.03, 0.40), (f + 0.03, 1.0), (f, 1.0)], right),
                np.asarray(colour) * 0.5,
                n,
            )
        s.put(s.side([(-0.30, 0.86), (-0.10, 0.86), (-0.10, 0.90), (-0.30, 0.90)], right), (0.75, 0.75, 0.76), n)
    s.wheel(-1.30, 0.33)
    s.wheel(1.32, 0.33)


def _ends(
    s: Solid,
    shown: list[Edge],
    split: float,
) -> None:
    """Paint lamps, plates and bumpers of a car."""
    lamp = 0.9 if s.canvas.weather.night else 0.25
    for a, b, n in shown:
        back = a[0] < -1.5 and b[0] < -1.5
        if back and a[1] >= split - 0.01 and b[1] < 1.0:
            for s0, s1 in ((-0.96, -0.62), (0.62, 0.96)):
                s.put(s.strip(a, b, 0.15, 0.85, s0, s1), (0.86, 0.08, 0.07), n, own=lamp)
            s.put(s.strip(a, b, 0.25, 0.75, -0.30, 0.30), (0.93, 0.92, 0.86), n)
        elif back and a[1] < 0.4:
            s.put(s.strip(a, b, 0.0, 0.42, -1, 1), (0.13, 0.13, 0.14), n)
        elif a[0] > 1.8 and a[1] < 0.75:
            s.put(s.strip(a, b, 0.05, 0.40, -0.60, 0.60), (0.08, 0.08, 0.09), n)
            s.put(s.strip(a, b, 0.50, 0.68, -0.26, 0.26), (0.93, 0.92, 0.86), n)
        elif a[0] > 1.8 and b[1] < 0.75:
            for s0, s1 in ((-0.94, -0.52), (0.52, 0.94)):
                s.put(s.strip(a, b, 0.0, 1.0, s0, s1), (1.0, 0.97, 0.88), n, own=0.5 + lamp / 2)


def _box(length: float, low: float, high: float, nose: float = 0.15) -> list[tuple[float, float]]:
    h = length / 2
    return [
        (-h, low),
        (-h, high - nose),
        (-h + nose, high),
        (h - nose, high),
        (h, high - nose * 1.5),
        (h, low),
    ]


def _coach(
    s: Solid, length: float, colours: tuple[Colour, Colour], glass: tuple[float, float], step: float,
    doors: tuple[float, ...],
) -> None:  # fmt: skip
    """Paint the long body that buses and trams share: two-colour paint, a band of windows, doors, ends, lamps."""
    main, stripe = colours
    shown, h = s.body(main), length / 2
    y0, y1 = glass
    lamp = 0.9 if s.canvas.weather.night else 0.3
    warm: Colour = (0.95, 0.80, 0.52) if s.canvas.weather.night else GLASS
    for right, n in s.flanks():
        s.put(s.side([(-h, 0.35), (h, 0.35), (h, 0.62), (-h, 0.62)], right), (0.16, 0.16, 0.18), n)
        s.put(s.side([(-h, 0.95), (h, 0.95), (h, y0 - 0.08), (-h, y0 - 0.08)], right), stripe, n, down=-0.2)
        s.put(
            s.side([(-h + 0.1, y0 - 0.05), (h - 0.1, y0 - 0.05), (h - 0.1, y1), (-h + 0.1, y1)], right),
            (0.07, 0.08, 0.09),
            n,
        )
        for f in np.arange(-h + 0.2, h - step + 0.1, step):
            s.pane(
                s.side([(f, y0), (f + step - 0.12, y0), (f + step - 0.12, y1 - 0.06), (f, y1 - 0.06)], right),
                n,
                warm,
            )
        for f in doors:
            s.put(
                s.side([(f, 0.40), (f + 1.2, 0.40), (f + 1.2, y1 - 0.04), (f, y1 - 0.04)], right),
                (0.10, 0.11, 0.12),
                n,
            )
            for g in (f + 0.06, f + 0.64):
                s.pane(s.side([(g, 0.55), (g + 0.5, 0.55), (g + 0.5, y1 - 0.15), (g, y1 - 0.15)], right), n, warm)
    for a, b, n in shown:
        if abs(a[0] - b[0]) > 0.05:
            continue
        end = abs(b[1] - a[1])
        t0, t1 = (y0 - min(a[1], b[1])) / end, (y1 - min(a[1], b[1])) / end
        if a[0] > 0:
            t0, t1 = 1 - t1, 1 - t0
        t0, t1 = max(t0 - 0.04, 0.0), min(t1, 0.98)
        s.put(s.strip(a, b, 0.22 if a[0] < 0 else 0.58, 0.38 if a[0] < 0 else 0.78, -1, 1), stripe, n)
        s.pane(s.strip(a, b, t0, t1, -0.90, 0.90), n)
        w0, w1 = (0.10, 0.20) if a[0] < 0 else (0.80, 0.90)
        for s0, s1 in ((-0.92, -0.68), (0.68, 0.92)):
            s.put(
                s.strip(a, b, w0, w1, s0, s1),
                (0.86, 0.08, 0.07) if a[0] < 0 else (1.0, 0.97, 0.86),
                n,
                own=lamp,
            )
        r0, r1 = (0.92, 0.99) if a[0] < 0 else (0.01, 0.09)
        s.put(s.strip(a, b, r0, r1, -0.55, 0.55), (0.98, 0.66, 0.14), n, own=0.6)


def bus(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Paint a city bus, red or yellow."""
    main, stripe = (((0.74, 0.13, 0.12), (0.93, 0.88, 0.78)), ((0.93, 0.68, 0.13), (0.75, 0.30, 0.10)))[
        int(rng.integers(2))
    ]
    s = Solid(canvas, pose, _box(9.6, 0.32, 3.05), 2.45, sc.BUS)
    s.ground_shadow(9.6, 2.8)
    _coach(s, 9.6, (main, stripe), (1.45, 2.55), 1.45, (1.2, -3.4))
    s.wheel(-2.9, 0.48)
    s.wheel(3.0, 0.48)


def tram(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Paint a tram: cream and green, on bogies, with its pantograph."""
    s = Solid(canvas, pose, _box(14.0, 0.22, 3.35, nose=0.35), 2.40, sc.TRAIN)
    s.ground_shadow(14.0, 3.2)
    _coach(s, 14.0, ((0.94, 0.91, 0.80), (0.10, 0.46, 0.42)), (1.35, 2.60), 1.30, (-5.2, -0.6, 4.0))
    for right, n in s.flanks():
        for f in (-4.6, 3.2):
            s.put(s.side([(f, 0.12), (f + 1.8, 0.12), (f + 1.8, 0.50), (f, 0.50)], right), (0.10, 0.10, 0.11), n)
    for f in (-1.2, -0.1):
        arm = s.pose.world(np.array([(f, 3.35, -0.05), (f, 3.35, 0.05), (-0.65, 4.3, 0.05), (-0.65, 4.3, -0.05)]))
        canvas.poly3(arm, (0.12, 0.12, 0.13), s.ident)
    bar = s.pose.world(np.array([(-0.65, 4.28, -0.8), (-0.65, 4.28, 0.8), (-0.65, 4.38, 0.8), (-0.65, 4.38, -0.8)]))
    canvas.poly3(bar, (0.12, 0.12, 0.13), s.ident)


def truck(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Paint a delivery truck: a pale box behind a coloured cab."""
    cab_paint = ((0.10, 0.28, 0.58), (0.80, 0.38, 0.10), (0.16, 0.42, 0.26))[int(rng.integers(3))]
    hold = Solid(canvas, Pose(*_shifted(pose, -1.1)), _box(5.2, 0.75, 3.35, nose=0.04), 2.40, sc.TRUCK)
    cab = Solid(
        canvas,
        Pose(*_shifted(pose, 2.55)),
        [(-0.95, 0.35), (-0.95, 2.5), (0.35, 2.55), (0.85, 1.55), (1.0, 0.9), (1.0, 0.35)],
        2.2,
        sc.TRUCK,
    )
    frame = Solid(canvas, pose, _box(6.4, 0.42, 0.80, nose=0.02), 2.0, sc.TRUCK)
    frame.ground_shadow(7.0, 3.0)
    order = [cab, hold] if np.cos(pose.yaw) >= 0 else [hold, cab]
    frame.body((0.13, 0.13, 0.14))
    for part in order:
        shown = part.body(cab_paint if part is cab else (0.90, 0.89, 0.86))
        if part is cab:
            _cab(part, shown)
        else:
            _hold(part, shown, cab_paint)
    for s, f in ((frame, -2.3), (frame, 2.45)):
        s.wheel(f, 0.46)


def _shifted(pose: Pose, forward: float) -> tuple[float, float, float]:
    p = pose.world(np.array([(forward, 0.0, 0.0)]))[0]
    return float(p[0]), float(p[2]), pose.yaw


def _cab(s: Solid, shown: list[Edge]) -> None:
    for a, b, n in shown:
        if a[0] > 0 and a[1] > 2.4:
            s.pane(s.strip(a, b, 0.12, 0.95, -0.88, 0.88), n)
        elif a[0] > 0.9:
            for s0, s1 in ((-0.92, -0.60), (0.60, 0.92)):
                s.put(s.strip(a, b, 0.15, 0.45, s0, s1), (1.0, 0.97, 0.88), n, own=0.5)
            s.put(s.strip(a, b, 0.15, 0.75, -0.5, 0.5), (0.10, 0.10, 0.11), n)
    for right, n in s.flanks():
        s.pane(s.side([(-0.55, 1.50), (0.68, 1.50), (0.26, 2.25), (-0.55, 2.25)], right), n)


def _hold(
    s: Solid,
    shown: list[Edge],
    paint: Colour,
) -> None:
    for right, n in s.flanks():
        for f in np.arange(-2.5, 2.6, 0.62):
            s.put(s.side([(f, 0.80), (f + 0.05, 0.80), (f + 0.05, 3.3), (f, 3.3)], right), (0.66, 0.66, 0.65), n)
        s.put(s.side([(-1.7, 1.75), (1.7, 1.75), (1.5, 2.45), (-1.5, 2.45)], right), paint, n)
    for a, b, n in shown:
        if a[0] < 0 and abs(a[0] - b[0]) < 0.01:
            s.put(s.strip(a, b, 0.02, 0.98, -0.02, 0.02), (0.30, 0.30, 0.31), n)
            for x in (-0.93, -0.45, 0.45, 0.93):
                s.put(s.strip(a, b, 0.05, 0.95, x - 0.015, x + 0.015), (0.58, 0.58, 0.58), n)
            for s0, s1 in ((-0.98, -0.78), (0.78, 0.98)):
                s.put(s.strip(a, b, 0.0, 0.06, s0, s1), (0.86, 0.08, 0.07), n, own=0.5)
            s.put(s.strip(a, b, 0.55, 0.75, -0.75, -0.12), paint, n)
