"""Photographs as the page holds them: data URIs, in the best quality at which all of them stay below a size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2sm import metrics
from pipelines.comparison.photographs import CLEAN, ComparedPhotograph
from pipelines.data.labels import LabelSet

_QUALITIES = ((92, 1280), (85, 1024), (80, 768), (80, 512), (70, 384))  # JPEG quality, longest side in pixels


class ReportError(ValueError):
    """A report that cannot be written as asked. One line."""


@dataclass(frozen=True)
class Version:
    """One version of a photograph: noisy, as a row restores it, or clean.

    Attributes:
        name: "noisy", the row's short name, or "clean".
        image: data URI of a JPEG.
        segmentation: data URI of a PNG in the classes' colours; "" without a segmenter.
        largest_classes: in words, such as "road 50%, sky 40%".
        psnr: of this version of this photograph; "" for the clean one.
    """

    name: str
    image: str
    segmentation: str
    largest_classes: str
    psnr: str


@dataclass(frozen=True)
class Picture:
    """A photograph as the page shows it; width and height are those of its files, after scaling."""

    name: str
    level: str
    width: int
    height: int
    scaled: bool
    versions: tuple[Version, ...]


def pictures(photographs: Sequence[ComparedPhotograph], *, limit: int) -> list[Picture]:
    """Every version of every photograph.

    Args:
        photographs: any number.
        limit: characters that all data URIs together may have.

    Raises:
        ReportError: they do not fit at the lowest quality.
    """
    for quality, longest in _QUALITIES:
        found = [_picture(photograph, quality, longest) for photograph in photographs]
        versions = [version for picture in found for version in picture.versions]
        if sum(len(version.image) + len(version.segmentation) for version in versions) <= limit:
            return found
    raise ReportError(
        f"--pictures {len(photographs)}: at the lowest quality they still take more than {limit / 1e6:.1f} MB; give "
        "fewer"
    )


def legend(photographs: Sequence[ComparedPhotograph]) -> list[tuple[str, str]]:
    """(class, its colour such as "#804080") for every class in any of the segmentations."""
    present = {
        int(index) for photo in photographs for classes in photo.classes.values() for index in np.unique(classes)
    }
    if not present:
        return []
    labels = photographs[0].labels
    return [(labels.classes[index], "#" + bytes(labels.colours[index]).hex()) for index in sorted(present)]


def data_uri(content: bytes, media_type: str) -> str:
    """data:MEDIA_TYPE;base64,..."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _picture(photograph: ComparedPhotograph, quality: int, longest: int) -> Picture:
    clean = photograph.images[CLEAN]
    height, width = clean.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (round(width * scale), round(height * scale))
    versions = []
    for name, image in photograph.images.items():
        psnr = segmentation = largest = ""
        if name != CLEAN:
            restored, truth = (pixels.transpose(2, 0, 1) / 255.0 for pixels in (image, clean))
            psnr = f"{metrics.psnr(restored, truth):.2f}"
        if name in photograph.classes:
            classes = photograph.classes[name]
            segmentation = data_uri(_png(classes, size, photograph.labels), "image/png")
            largest = _largest_classes(classes, photograph.labels)
        versions.append(Version(name, data_uri(_jpeg(image, size, quality), "image/jpeg"), segmentation, largest, psnr))
    return Picture(photograph.name, photograph.level, *size, scale < 1, tuple(versions))


def _jpeg(image: NDArray[np.uint8], size: tuple[int, int], quality: int) -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.save(file, "JPEG", quality=quality, subsampling=0)  # colour at full resolution
    return file.getvalue()


def _png(classes: NDArray[np.uint8], size: tuple[int, int], labels: LabelSet) -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(classes)
    picture.putpalette(labels.colours.tobytes())  # class indices become indices of colours
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _largest_classes(classes: NDArray[np.uint8], labels: LabelSet) -> str:
    shares = np.bincount(classes.ravel(), minlength=len(labels.classes)) / classes.size
    largest = np.argsort(-shares, kind="stable")[:4]
    return ", ".join(f"{labels.classes[index]} {shares[index]:.0%}" for index in largest if shares[index] >= 0.01)
