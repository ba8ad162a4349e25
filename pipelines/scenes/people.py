"""People on foot, and bicycles and motorcycles with and without riders, of the built-in scenes."""

from __future__ import annotations

import numpy as np

from pipelines.scenes import canvas as sc
from pipelines.scenes.canvas import Array, Canvas, Colour, circle
from pipelines.scenes.things import line3, shadow

SKIN = ((0.86, 0.66, 0.53), (0.62, 0.43, 0.32), (0.42, 0.28, 0.20), (0.93, 0.76, 0.64))
CLOTH = ((0.70, 0.18, 0.20), (0.16, 0.26, 0.48), (0.86, 0.82, 0.74), (0.24, 0.24, 0.27), (0.82, 0.58, 0.20),
         (0.26, 0.44, 0.40), (0.52, 0.34, 0.50), (0.46, 0.56, 0.66))  # fmt: skip
TROUSERS = ((0.17, 0.20, 0.30), (0.22, 0.21, 0.21), (0.47, 0.41, 0.33), (0.30, 0.36, 0.46))


class _Figure:
    """A flat figure that faces the camera; its parts are given in metres sideways and up from a point on the ground."""

    def __init__(self, canvas: Canvas, x: float, z: float, *, squash: float = 1.0, flip: bool = False) -> None:
        self.canvas, self.x, self.z = canvas, x, z
        self.k = -squash if flip else squash
        self.light = canvas.light((0, 0.3, -0.95)) * 1.05
        self.side = float(np.sign(canvas.sun[0])) * (0.5 if max(canvas.weather.sun) > 0.5 else 0.2)

    def part(self, points: list[tuple[float, float]] | Array, colour: Colour | None, ident: int | None) -> None:
        """Paint a polygon."""
        p = np.asarray(points, float)
        world = np.stack([self.x + self.k * p[:, 0], p[:, 1], np.full(len(p), self.z)], axis=1)
        shade = None if colour is None else np.asarray(colour) * self.light
        self.canvas.poly3(world, shade, ident, right=self.side, down=-0.12, grain=0.03)

    def limb(
        self, a: tuple[float, float], b: tuple[float, float], wa: float, wb: float, colour: Colour, ident: int
    ) -> None:
        """Paint a tapering bar with round ends."""
        p, q = np.array(a), np.array(b)
        n = np.array([-(q - p)[1], (q - p)[0]]) / max(float(np.hypot(*(q - p))), 1e-6)
        turn = np.linspace(-np.pi / 2, np.pi / 2, 5)
        d = (q - p) / max(float(np.hypot(*(q - p))), 1e-6)
        start = [p - wa * (np.cos(t) * d) + wa * np.sin(t) * -n for t in turn]
        end = [q + wb * (np.cos(t) * d) + wb * np.sin(t) * n for t in turn]
        self.part(np.array(start + end), colour, ident)

    def ring(self, x: float, y: float, r: float, tyre: float, ident: int) -> None:
        """Paint a wheel with tyre and spokes; the whole disc gets the label."""
        canvas, cam = self.canvas, self.canvas.camera
        u, v = cam.project(np.array([(self.x + self.k * x, y, self.z)]))[0]
        s = cam.focal / self.z
        ru = r * s * abs(self.k)
        outer, inner = circle(u, v, ru, r * s), circle(u, v, ru - tyre * s, (r - tyre) * s)
        canvas.poly(outer, None, ident, z=self.z)
        canvas.poly(outer, (0.07, 0.07, 0.08), None, z=self.z, hole=inner)
        for t in np.linspace(0, np.pi, 5, endpoint=False):
            dx, dy = r * np.cos(t), r * np.sin(t)
            ends = (self.x + self.k * (x - dx), y - dy, self.z), (self.x + self.k * (x + dx), y + dy, self.z)
            line3(canvas, ends[0], ends[1], 0.012, (0.30, 0.30, 0.31), None)


def person(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """Paint a person who walks or waits."""
    tall = float(rng.uniform(0.92, 1.08))
    shadow(canvas, x, z, 0.34, 1.7)
    fig = _Figure(canvas, x, z, squash=1.0, flip=bool(rng.random() < 0.5))
    skin, coat = SKIN[int(rng.integers(4))], CLOTH[int(rng.integers(len(CLOTH)))]
    legs, hair = (
        TROUSERS[int(rng.integers(4))],
        ((0.12, 0.09, 0.08), (0.40, 0.25, 0.14), (0.70, 0.56, 0.34))[int(rng.integers(3))],
    )
    stride, dress = float(rng.uniform(0.02, 0.26)), rng.random() < 0.3
    p = sc.PERSON

    def at(a: float, b: float) -> tuple[float, float]:
        return a * tall, b * tall

    back, front = at(-stride, 0.06), at(stride, 0.06)
    fig.limb(at(-0.06, 0.85), back, 0.085, 0.055, skin if dress else np.asarray(legs) * 0.75, p)
    fig.limb(at(0.06, 0.85), front, 0.09, 0.06, skin if dress else legs, p)
    for foot in (back, front):
        fig.limb((foot[0], 0.05), (foot[0] + 0.14, 0.04), 0.05, 0.04, (0.10, 0.09, 0.09), p)
    fig.limb(at(-0.17, 1.36), at(-0.24 - stride * 0.5, 0.90), 0.06, 0.045, np.asarray(coat) * 0.75, p)
    hem = at(0.27, 0.52) if dress else at(0.17, 0.80)
    fig.part(
        [
            at(-0.12, 1.47),
            at(0.12, 1.47),
            at(0.22, 1.38),
            at(0.18, 1.05),
            hem,
            (-hem[0], hem[1]),
            at(-0.18, 1.05),
            at(-0.22, 1.38),
        ],
        coat,
        p,
    )
    fig.limb(at(0.18, 1.36), at(0.22 + stride * 0.6, 0.92), 0.06, 0.045, np.asarray(coat) * 1.06, p)
    fig.part(circle(0.23 + stride * 0.6, 0.88 * tall, 0.05), skin, p)
    if rng.random() < 0.5:
        fig.part(
            [at(-0.36, 0.95), at(-0.18, 0.95), at(-0.16, 0.66), at(-0.38, 0.66)],
            CLOTH[int(rng.integers(8))],
            p,
        )
    fig.limb(at(0, 1.45), at(0.01, 1.54), 0.05, 0.05, skin, p)
    fig.part(circle(-0.01, 1.66 * tall, 0.115, 0.145), hair, p)
    if rng.random() < 0.6:
        fig.part(circle(0.03, 1.63 * tall, 0.085, 0.115), skin, p)


def _rider(
    fig: _Figure,
    seat: tuple[float, float],
    hand: tuple[float, float],
    foot: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    coat, legs = CLOTH[int(rng.integers(len(CLOTH)))], TROUSERS[int(rng.integers(4))]
    skin, r = SKIN[int(rng.integers(4))], sc.RIDER
    sx, sy = seat
    knee = (sx + 0.42, sy - 0.10)
    fig.limb((sx, sy + 0.05), knee, 0.11, 0.085, legs, r)
    fig.limb(knee, foot, 0.085, 0.055, legs, r)
    fig.limb(foot, (foot[0] + 0.13, foot[1] - 0.02), 0.05, 0.04, (0.1, 0.09, 0.09), r)
    neck = (sx + 0.30, sy + 0.58)
    fig.limb((sx, sy + 0.08), (neck[0] - 0.03, neck[1] - 0.05), 0.15, 0.17, coat, r)
    fig.limb((neck[0], neck[1] - 0.06), hand, 0.065, 0.05, np.asarray(coat) * 1.08, r)
    fig.part(circle(hand[0], hand[1], 0.05), skin, r)
    fig.part(circle(neck[0] + 0.06, neck[1] + 0.19, 0.105, 0.13), skin, r)
    helmet = circle(neck[0] + 0.05, neck[1] + 0.24, 0.145, 0.13)
    fig.part(helmet[helmet[:, 1] > neck[1] + 0.17], CLOTH[int(rng.integers(len(CLOTH)))], r)


def bicycle(canvas: Canvas, x: float, z: float, rng: np.random.Generator, *, ridden: bool) -> None:
    """Paint a bicycle seen from the side, with or without its rider."""
    shadow(canvas, x, z, 0.6, 0.9)
    fig = _Figure(canvas, x, z, squash=float(rng.uniform(0.8, 1.0)), flip=bool(rng.random() < 0.5))
    paint, b = CLOTH[int(rng.integers(len(CLOTH)))], sc.BICYCLE
    for wheel in (-0.52, 0.54):
        fig.ring(wheel, 0.36, 0.36, 0.055, b)
    crank, seat, head = (-0.06, 0.34), (-0.20, 0.86), (0.38, 0.84)
    fig.part([(-0.52, 0.36), crank, head, seat], None, b)
    for p, q in (
        ((-0.52, 0.36), crank),
        ((-0.52, 0.36), seat),
        (crank, seat),
        (crank, head),
        (seat, head),
        (head, (0.54, 0.36)),
        (head, (0.34, 1.06)),
    ):
        fig.limb(p, q, 0.028, 0.028, paint, b)
    fig.limb((-0.34, 0.95), (-0.10, 0.95), 0.045, 0.035, (0.1, 0.1, 0.1), b)
    fig.limb((0.34, 1.06), (0.46, 1.04), 0.03, 0.03, (0.1, 0.1, 0.1), b)
    if ridden:
        _rider(fig, (-0.22, 0.98), (0.42, 1.06), (-0.02, 0.22), rng)


def motorcycle(canvas: Canvas, x: float, z: float, rng: np.random.Generator, *, ridden: bool) -> None:
    """Paint a motorcycle seen from the side, with or without its rider."""
    shadow(canvas, x, z, 0.8, 1.0)
    fig = _Figure(canvas, x, z, squash=float(rng.uniform(0.8, 1.0)), flip=bool(rng.random() < 0.5))
    paint = ((0.72, 0.10, 0.10), (0.10, 0.16, 0.36), (0.84, 0.42, 0.08), (0.12, 0.12, 0.13))[int(rng.integers(4))]
    m = sc.MOTORCYCLE
    for wheel in (-0.70, 0.74):
        fig.ring(wheel, 0.33, 0.33, 0.13, m)
        fig.part(circle(wheel, 0.33, 0.09), (0.66, 0.66, 0.68), m)
    fig.part([(-0.50, 0.28), (0.32, 0.28), (0.46, 0.62), (-0.50, 0.66)], (0.20, 0.20, 0.22), m)
    fig.part(circle(0.02, 0.44, 0.20, 0.17), (0.55, 0.55, 0.57), m)
    fig.limb((-0.15, 0.24), (-0.95, 0.32), 0.045, 0.065, (0.76, 0.76, 0.78), m)
    fig.limb((0.74, 0.33), (0.48, 0.98), 0.04, 0.04, (0.66, 0.66, 0.68), m)
    fig.part([(-0.12, 0.66), (0.44, 0.64), (0.46, 0.84), (0.24, 0.93), (-0.02, 0.86)], paint, m)
    fig.part([(-0.98, 0.82), (-0.90, 0.70), (-0.10, 0.68), (-0.06, 0.80), (-0.62, 0.84)], (0.08, 0.08, 0.09), m)
    fig.part([(-1.00, 0.66), (-0.55, 0.76), (-0.50, 0.62), (-0.86, 0.60)], paint, m)
    fig.limb((0.48, 0.98), (0.30, 1.08), 0.03, 0.03, (0.1, 0.1, 0.1), m)
    fig.part(circle(0.60, 0.86, 0.10), (0.98, 0.95, 0.82), m)
    if ridden:
        _rider(fig, (-0.30, 0.86), (0.32, 1.08), (-0.04, 0.24), rng)
