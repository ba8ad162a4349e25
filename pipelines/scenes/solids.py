"""Solids of the built-in scenes: side outlines extruded to a width, rotated, and lit face by face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.scenes.canvas import Array, Canvas, Colour, mix

RUBBER, GLASS = (0.06, 0.06, 0.07), (0.10, 0.13, 0.16)
Edge = tuple[tuple[float, float], tuple[float, float], tuple[float, float, float]]
"""A visible face, by its edge of the outline: both ends as (forward, up), and its normal in the world."""


@dataclass(frozen=True)
class Pose:
    """Position of a vehicle: its middle (x, z) in metres; `yaw` 0 points away from the camera, growing to the right."""

    x: float
    z: float
    yaw: float

    def world(self, local: Array) -> Array:
        """(n, 3) of (forward, up, right) -> (n, 3) of (x, y, z)."""
        s, c = np.sin(self.yaw), np.cos(self.yaw)
        out = [
            self.x + local[:, 0] * s + local[:, 2] * c,
            local[:, 1],
            self.z + local[:, 0] * c - local[:, 2] * s,
        ]
        return np.stack(out, axis=1)


class Solid:
    """An outline (n, 2) of (forward, up), extruded to `width`; above `waist` it narrows by `taper` a metre.

    The outline runs from the rear bottom over the roof to the front bottom.
    """

    def __init__(
        self, canvas: Canvas, pose: Pose, outline: list[tuple[float, float]], width: float, ident: int,
        *, waist: float = 99.0, taper: float = 0.0,
    ) -> None:  # fmt: skip
        self.canvas, self.pose, self.ident = canvas, pose, ident
        self.outline, self.width = np.asarray(outline, float), width
        self.waist, self.taper = waist, taper
        self.eye = np.array([0.0, canvas.camera.height, 0.0])

    def half(self, y: Array) -> Array:
        """Half the width at a height."""
        return np.asarray(self.width / 2 * (1 - self.taper * np.maximum(y - self.waist, 0.0)))

    def side(self, points: list[tuple[float, float]] | Array, right: bool) -> Array:
        """Points (n, 2) on a flank, in world coordinates."""
        p = np.asarray(points, float)
        return self.pose.world(np.stack([p[:, 0], p[:, 1], self.half(p[:, 1]) * (1 if right else -1)], axis=1))

    def strip(
        self, a: tuple[float, float], b: tuple[float, float], t0: float, t1: float, s0: float, s1: float
    ) -> Array:
        """Part of the face above the outline's edge a-b: t along the edge, s from -1 (left) to 1 (right)."""
        rows = []
        for t, s in ((t0, s0), (t0, s1), (t1, s1), (t1, s0)):
            f, y = a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t
            rows.append((f, y, float(self.half(np.array(y))) * s))
        return self.pose.world(np.array(rows))

    def normal(self, local: tuple[float, float, float]) -> tuple[float, float, float]:
        """A direction of the solid in world coordinates."""
        w = self.pose.world(np.array([local])) - self.pose.world(np.zeros((1, 3)))
        return (float(w[0, 0]), float(w[0, 1]), float(w[0, 2]))

    def seen(self, face: Array, normal: tuple[float, float, float]) -> bool:
        """Whether the face looks towards the camera."""
        return float(np.dot(self.eye - face.mean(0), normal)) > 0

    def put(
        self,
        face: Array,
        colour: Colour,
        normal: tuple[float, float, float],
        *,
        own: float = 0.0,
        down: float = 0.0,
    ) -> None:
        """Paint a face; `own` is the light that it emits itself (1: a lamp)."""
        light = self.canvas.light(normal)
        self.canvas.poly3(face, np.asarray(colour) * mix(light, 1.0, own), self.ident, down=down)

    def body(self, colour: Colour) -> list[Edge]:
        """Paint flanks, ends and roof, the farthest first; gives the visible edges with their normals."""
        shown, o = [], self.outline
        faces = []
        for i in range(len(o) - 1):
            a, b = (float(o[i, 0]), float(o[i, 1])), (float(o[i + 1, 0]), float(o[i + 1, 1]))
            d = np.array(b) - np.array(a)
            n = np.array([-d[1], d[0]]) / max(float(np.hypot(*d)), 1e-6)
            normal = self.normal((float(n[0]), float(n[1]), 0.0))
            face = self.strip(a, b, 0, 1, -1, 1)
            if self.seen(face, normal):
                faces.append((float(face[:, 2].mean()), face, normal))
                shown.append((a, b, normal))
        for _, face, normal in sorted(faces, key=lambda item: -item[0]):
            self.put(face, colour, normal, down=-0.18)
        for right in (False, True):
            face, normal = self.side(o, right), self.normal((0, 0, 1 if right else -1))
            if self.seen(face, normal):
                self.put(face, colour, normal, down=-0.30)
        return shown

    def flanks(self) -> list[tuple[bool, tuple[float, float, float]]]:
        """The visible flanks: (whether it is the right one, its normal)."""
        both = [(right, self.normal((0, 0, 1 if right else -1))) for right in (False, True)]
        return [(right, n) for right, n in both if self.seen(self.side(self.outline, right), n)]

    def pane(self, face: Array, normal: tuple[float, float, float], tone: Colour = GLASS) -> None:
        """Paint window glass: dark, with a paler streak of sky."""
        weather = self.canvas.weather
        sky = np.asarray(mix(tone, weather.horizon, 0.22 + 0.18 * max(normal[1], 0.0)))
        self.canvas.poly3(face, sky, self.ident, down=-0.9)
        if len(face) == 4:
            low, high = face[0] * 0.62 + face[1] * 0.38, face[3] * 0.42 + face[2] * 0.58
            wide = (face[1] - face[0]) * 0.13
            gleam = np.array([low, low + wide, high + wide, high])
            self.canvas.poly3(gleam, np.asarray(weather.horizon) * 0.8, None, alpha=0.35)

    def wheel(self, forward: float, radius: float, hub: Colour = (0.62, 0.63, 0.65)) -> None:
        """Paint a wheel in its dark arch on each visible flank."""
        t = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ring = np.stack([np.cos(t), np.sin(t)], axis=1)
        for right, normal in self.flanks():
            arch = ring[ring[:, 1] > -0.35] * radius * 1.22 + (forward, radius)
            self.canvas.poly3(self.side(arch, right), (0.05, 0.05, 0.06), self.ident)
            self.canvas.poly3(self.side(ring * radius + (forward, radius), right), RUBBER, self.ident)
            self.put(self.side(ring * radius * 0.60 + (forward, radius), right), hub, normal)
            self.put(self.side(ring * radius * 0.42 + (forward, radius), right), (0.28, 0.28, 0.30), normal)
            self.put(self.side(ring * radius * 0.16 + (forward, radius), right), hub, normal)

    def ground_shadow(self, length: float, height: float) -> None:
        """Paint the contact shadow, and the cast shadow if the sun shines."""
        w = self.width / 2 * 1.04
        box = np.array([(-length / 2, 0, -w), (length / 2, 0, -w), (length / 2, 0, w), (-length / 2, 0, w)])
        base = self.pose.world(box)
        if max(self.canvas.weather.sun) > 0.5:
            lx, ly, lz = (float(c) for c in self.canvas.sun)
            cast = np.array([-lx, 0.0, -lz]) * height / max(ly, 0.2)
            self.canvas.soft_shadow(_hull(np.concatenate([base, base + cast])), 0.55, blur=0.05)
        self.canvas.soft_shadow(base, 0.80, blur=0.12)


def _hull(points: Array) -> Array:
    """Convex hull of points (n, 3) on the ground, in order."""
    order = points[np.lexsort((points[:, 2], points[:, 0]))]

    def half(rows: Array) -> list[Array]:
        out: list[Array] = []
        for p in rows:
            while len(out) > 1:
                a, b = out[-1] - out[-2], p - out[-2]
                if a[0] * b[2] - a[2] * b[0] > 0:
                    break
                out.pop()
            out.append(p)
        return out[:-1]

    return np.array(half(order) + half(order[::-1]))
