"""The list of degradations: the steps that a clean image goes through to become the one that a network restores.

A degradation is a function

    degrade(images, *, level, seeds) -> degraded       images, degraded: (B, 3, H, W); level: (B,); B seeds

that keeps shape and type, and whose randomness is a function of each image's seed alone, so that an image is degraded
alike in every batch, on every worker and after a restart. level is on the CPU or on the images' device. A new one is a
file with such a function and an entry in `DEGRADATIONS`. `d2sm.chain` writes them one after the other, as in
"blur:0.5..3+noise:0..50+jpeg:30..95". Importing this module loads no torch: a function is imported when first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Degrade(Protocol):
    """The call of a degradation."""

    def __call__(self, images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class Degradation:
    """An entry of the list.

    Attributes:
        name: by which it is chosen.
        target: its function, as "module:function".
        summary: a few words for help texts and for the convention of numbers that are reported.
        unit: of its level.
        low, high: the levels that it takes.
        whole: whether its levels are whole numbers.
        stronger: whether a higher or a lower level degrades more.
        is_noise: whether its level is the sigma (units of 0..255) that a network is told.
        unknown_noise: whether it adds, or may add, noise whose sigma is not known.
    """

    name: str
    target: str
    summary: str
    unit: str
    low: float = 0.0
    high: float = float("inf")
    whole: bool = False
    stronger: Literal["higher", "lower"] = "higher"
    is_noise: bool = False
    unknown_noise: bool = False

    def load(self) -> Degrade:
        """Import the function. Raises ImportError or AttributeError."""
        return cast("Degrade", resolve_name(self.target))


DEGRADATIONS: dict[str, Degradation] = {
    degradation.name: degradation
    for degradation in (
        # name, function, summary, unit of the level, the levels it takes
        Degradation(
            "noise",
            "d2sm.noise:gaussian",
            "additive Gaussian noise, not clipped",
            "standard deviation, 0..255",
            high=255,
            is_noise=True,
        ),
        Degradation(
            "noise_clip",
            "d2sm.noise:clipped",
            "additive Gaussian noise, clipped and rounded as in 8-bit files",
            "standard deviation, 0..255",
            high=255,
            is_noise=True,
        ),
        Degradation(
            "poisson",
            "d2sm.noise:poisson",
            "photon and read noise of a sensor, not clipped",
            "electrons of a white pixel",
            low=1,
            high=1e5,
            stronger="lower",
            unknown_noise=True,
        ),
        Degradation(
            "jpeg",
            "d2sm.jpeg:jpeg",
            "JPEG with 4:2:0 chroma",
            "quality",
            low=1,
            high=100,
            whole=True,
            stronger="lower",
        ),
        Degradation("blur", "d2sm.blur:gaussian_blur", "Gaussian blur", "standard deviation in pixels", high=50),
        Degradation(
            "motion", "d2sm.blur:motion_blur", "straight motion blur of random angle", "length in pixels", high=100
        ),
        Degradation(
            "downsample",
            "d2sm.downsample:downsample",
            "bicubic downsampling, and bicubic upsampling to the former size",
            "factor",
            low=1,
            high=16,
            whole=True,
        ),
        Degradation(
            "haze",
            "d2sm.haze:haze",
            "synthetic haze, thicker towards a horizon",
            "optical depth at the horizon",
            high=10,
        ),
    )
}
