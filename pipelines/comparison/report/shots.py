"""Pictures as data URIs, in the best quality at which all of them stay below a size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2sm import metrics
from pipelines.comparison.figures.scene import CLEAN, Scene

_STEPS = ((92, 1280), (85, 1024), (80, 768), (80, 512), (70, 384))  # JPEG quality, widest side in pixels


class ReportError(ValueError):
    """A report that cannot be written as asked. One line."""


@dataclass(frozen=True)
class Shot:
    """One kind of one scene: the picture and what the segmenter sees in it ("" without a segmenter)."""

    of: str
    picture: str
    classes: str
    seen: str  # the largest classes in words
    psnr: str  # of this picture, "" for the clean one


@dataclass(frozen=True)
class Shown:
    """A scene as the page shows it; width and height are the stored ones."""

    name: str
    level: str
    width: int
    height: int
    scaled: bool
    shots: tuple[Shot, ...]


def shown(scenes: Sequence[Scene], *, limit: int) -> list[Shown]:
    """Every scene, noisy, each row and clean, as JPEG in full colour resolution; class maps as PNG.

    Args:
        scenes: any number.
        limit: characters that all of them may take together.

    Raises:
        ReportError: even small and coarse they do not fit.
    """
    for quality, widest in _STEPS:
        found = [_shown(scene, quality, widest) for scene in scenes]
        if sum(len(shot.picture) + len(shot.classes) for scene in found for shot in scene.shots) <= limit:
            return found
    raise ReportError(f"--pictures {len(scenes)}: they take more than {limit / 1e6:.1f} MB even when small; give fewer")


def legend(scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    """(class, its colour such as #804080) for every class that is seen in any of the pictures."""
    seen = {int(i) for scene in scenes for classes in scene.classes.values() for i in np.unique(classes)}
    return [(metrics.CLASSES[i], "#" + bytes(metrics.COLOURS[i]).hex()) for i in sorted(seen)]


def uri(data: bytes, kind: str) -> str:
    """data:KIND;base64,..."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _shown(scene: Scene, quality: int, widest: int) -> Shown:
    height, width = scene.images[CLEAN].shape[:2]
    share = min(1.0, widest / max(height, width))
    size = (round(width * share), round(height * share))
    shots = tuple(
        Shot(
            of=of,
            picture=uri(_jpeg(image, size, quality), "image/jpeg"),
            classes=uri(_png(scene.classes[of], size), "image/png") if of in scene.classes else "",
            seen=_seen(scene.classes[of]) if of in scene.classes else "",
            psnr="" if of == CLEAN else _psnr(image, scene.images[CLEAN]),
        )
        for of, image in scene.images.items()
    )
    return Shown(scene.name, scene.level, *size, share < 1, shots)


def _jpeg(image: NDArray[np.uint8], size: tuple[int, int], quality: int) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def _png(classes: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(classes)
    picture.putpalette(metrics.COLOURS.tobytes())  # turns grey into indices of colours
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _seen(classes: NDArray[np.uint8]) -> str:
    shares = np.bincount(classes.ravel(), minlength=len(metrics.CLASSES)) / classes.size
    largest = np.argsort(-shares, kind="stable")[:4]
    return ", ".join(f"{metrics.CLASSES[i]} {shares[i]:.0%}" for i in largest if shares[i] >= 0.01)


def _psnr(image: NDArray[np.uint8], clean: NDArray[np.uint8]) -> str:
    a, b = (part.transpose(2, 0, 1) / 255.0 for part in (image, clean))
    return f"{metrics.psnr(restored=a, clean=b):.2f}"
