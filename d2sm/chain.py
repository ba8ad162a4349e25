"""A chain of degradations: its text, its levels and its name, and images degraded by it.

A chain is written as its steps in order, joined by "+"; a step is the name of an entry of `DEGRADATIONS`, or a
"module:callable" that keeps their contract, and its level:

    noise:25                        one level
    jpeg:10/20/40                   one of these
    blur:0.5..3                     uniform between the two, ends included; whole numbers where the levels are
    blur:0.5..3+noise:0..50         both, the blur first

A chain of single levels is fixed; its name ("25" for noise alone, else "jpeg10" or "blur2+noise10") stands for the
level of an evaluation. Importing this module loads no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from d2sm.degradations import DEGRADATIONS, Degradation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_NUMBER = r"\d+(?:\.\d+)?"
_IMPORTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LEVEL = re.compile(rf"({_NUMBER})\.\.({_NUMBER})|{_NUMBER}(?:/{_NUMBER})*")
_SYNTAX = "write NAME:LEVEL, NAME:LOW..HIGH or NAME:LEVEL/LEVEL, such as jpeg:10..60, and + between two steps"
_SEVERITIES = (0.25, 0.5, 0.75)  # of the levels at which a chain is measured, between its weakest and its strongest


class ChainError(ValueError):
    """A text that is no chain. One line."""


@dataclass(frozen=True)
class Step:
    """A degradation and the levels that are drawn for it.

    Attributes:
        degradation: the entry of the list, or one made for a "module:callable".
        levels: the two ends of a uniform distribution, or the levels to choose from.
        draw: which of the two.
    """

    degradation: Degradation
    levels: tuple[float, ...]
    draw: Literal["uniform", "list"] = "list"

    def at(self, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """The levels at places in [0, 1) of the distribution: 0 is its first or lowest level."""
        import numpy as np

        levels = np.asarray(self.levels)
        if self.draw == "list":
            return np.asarray(levels[(place * len(levels)).astype(int)])
        if self.degradation.whole:
            return np.asarray(levels[0] + np.floor(place * (levels[1] - levels[0] + 1)))
        return np.asarray(levels[0] + place * (levels[1] - levels[0]))

    def of_severity(self, severity: float) -> Step:
        """The step at one level: 0 is its weakest, 1 its strongest; rounded to two digits."""
        place = severity if self.degradation.stronger == "higher" else 1 - severity
        if self.draw == "list":
            level = sorted(self.levels)[round(place * (len(self.levels) - 1))]
        else:
            low, high = self.levels
            level = low + place * (high - low)
            level = round(level) if self.degradation.whole else min(max(float(f"{level:.2g}"), low), high)
        return Step(self.degradation, (float(level),))

    def check(self, levels: Tensor) -> None:
        """Check that the degradation takes levels, (B,) on the CPU.

        Raises:
            ValueError: it does not take one of them.
        """
        low, high = self.degradation.low, self.degradation.high
        if wrong := [level for level in levels.tolist() if not low <= level <= high]:
            raise ValueError(f"levels: {_no_level(wrong[0], self.degradation)}")

    def __str__(self) -> str:
        numbers = (".." if self.draw == "uniform" else "/").join(f"{level:.10g}" for level in self.levels)
        return f"{self.degradation.name}:{numbers}"


@dataclass(frozen=True)
class Chain:
    """Degradations one after the other; `parse` reads one from its text.

    Example:
        >>> import torch
        >>> chain = parse("blur:2+noise:10")
        >>> chain.name
        'blur2+noise10'
        >>> chain.degraded(torch.rand(1, 3, 32, 48), levels=torch.tensor([chain.level]), seeds=[7]).shape
        torch.Size([1, 3, 32, 48])
    """

    steps: tuple[Step, ...]

    @property
    def is_fixed(self) -> bool:
        """Whether every step has one level."""
        return all(len(step.levels) == 1 for step in self.steps)

    @property
    def level(self) -> tuple[float, ...]:
        """The level of each step of a fixed chain."""
        assert self.is_fixed
        return tuple(step.levels[0] for step in self.steps)

    @property
    def is_noise(self) -> bool:
        """Whether it is Gaussian noise alone, which is named by its sigma: "25"."""
        return [step.degradation.name for step in self.steps] == ["noise"]

    @property
    def has_noise(self) -> bool:
        """Whether a step is noise, so that a network is told another sigma than 0."""
        return any(step.degradation.is_noise for step in self.steps)

    @property
    def unknown_noise(self) -> tuple[str, ...]:
        """The names of the steps that add, or may add, noise that `sigmas` leaves out."""
        return tuple(step.degradation.name for step in self.steps if step.degradation.unknown_noise)

    @property
    def name(self) -> str:
        """Of a fixed chain, as an evaluation calls it: "25", "jpeg10", "blur2+noise10"."""
        numbers = [f"{level:g}" for level in self.level]
        if self.is_noise:
            return numbers[0]
        # Of "module:callable" only the callable is named.
        names = [step.degradation.name.rpartition(":")[2] for step in self.steps]
        return "+".join(f"{name}{number}" for name, number in zip(names, numbers, strict=True))

    @property
    def sigma(self) -> float:
        """What a network is told of a fixed chain: the standard deviation of its noise, 0..255; 0 without noise."""
        import numpy as np

        return float(self.sigmas(np.asarray([self.level]))[0])

    @property
    def imports(self) -> tuple[str, ...]:
        """The "module:callable"s in it, which are imported and run."""
        return tuple(step.degradation.target for step in self.steps if step.degradation.name not in DEGRADATIONS)

    @property
    def summary(self) -> str:
        """Its steps in words: "Gaussian blur (blur), then JPEG with 4:2:0 chroma (jpeg)"."""
        return ", then ".join(f"{step.degradation.summary} ({step.degradation.name})" for step in self.steps)

    def sigmas(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a network is told: levels (B, steps) -> (B,) standard deviations of the noise, units of 0..255.

        The variances of several steps of noise are added, which is exact where no other step stands between them. Noise
        of the steps in `unknown_noise` does not count.
        """
        import numpy as np

        noisy = [column for column, step in enumerate(self.steps) if step.degradation.is_noise]
        if len(noisy) == 1:
            return levels[:, noisy[0]]
        return np.asarray(np.sqrt(np.square(levels[:, noisy]).sum(1)))

    def fixed_levels(self) -> tuple[Chain, ...]:
        """The fixed chains at which one with ranges is measured, from weak to strong.

        The levels of a single listed step; else three, at a quarter, half and three quarters of the way from each
        step's weakest to its strongest level.
        """
        if self.is_fixed:
            return (self,)
        only = self.steps[0]
        if len(self.steps) == 1 and only.draw == "list":
            levels = sorted(set(only.levels), reverse=only.degradation.stronger == "lower")
            return tuple(Chain((Step(only.degradation, (level,)),)) for level in levels)
        chains = [Chain(tuple(step.of_severity(severity) for step in self.steps)) for severity in _SEVERITIES]
        return tuple({chain.name: chain for chain in chains}.values())

    def degraded(self, clean: Tensor, *, levels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Degrade a batch step by step. Each image's result is a function of its levels and its seed alone.

        Args:
            clean: (B, 3, H, W) in [0, 1]; the range is checked of the first image, and on the CPU alone, since
                a GPU's host would have to wait.
            levels: (B, steps), on the CPU or on the device of `clean`; each is checked on the CPU alone, likewise.
            seeds: B integers. The first step takes them as they are, the others each a seed made of it and their place.

        Returns:
            (B, 3, H, W), not clipped.

        Raises:
            ValueError: images of another shape, type or range, a level that a step does not take, or levels or seeds
                that do not have one entry for each image.
        """
        from d2sm.images import check_images, check_range
        from d2sm.noise import seed_of

        check_images("clean", clean)
        if clean.device.type == "cpu" and clean.numel():
            check_range("clean", clean[:1])  # the batch's: to look at all takes time beside the noise
        wanted = (len(clean), len(self.steps))
        if levels.shape != wanted or len(seeds) != len(clean):
            raise ValueError(
                f"levels: shape {tuple(levels.shape)} and {len(seeds)} seeds; give {wanted}, a level of each step, and "
                f"{len(clean)} seeds, one for each image"
            )
        if levels.device.type == "cpu":
            for step, column in zip(self.steps, levels.unbind(1), strict=True):
                step.check(column)
        images = clean
        for place, step in enumerate(self.steps):
            own = [seed_of(f"{seed}/{place}") for seed in seeds] if place else list(seeds)
            images = step.degradation.load()(images, level=levels[:, place], seeds=own)
        return images

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))


def noise(sigmas: Sequence[float], draw: Literal["uniform", "list"] = "list") -> Chain:
    """Gaussian noise alone, its sigma drawn between two ends or from a list."""
    return Chain((Step(DEGRADATIONS["noise"], tuple(map(float, sigmas)), draw),))


@lru_cache(maxsize=64)
def parse(text: str) -> Chain:
    """The chain that a text stands for. Nothing is imported.

    Raises:
        ChainError: no chain, an unknown step, or a level that it does not take.
    """
    return Chain(tuple(map(_step, text.split("+"))))


def _step(text: str) -> Step:
    name, _, written = text.strip().rpartition(":")
    found = _LEVEL.fullmatch(written)
    if text in DEGRADATIONS or (found is None and name not in DEGRADATIONS and _IMPORTED.fullmatch(text)):
        raise ChainError(f"{text!r} has no level; {_SYNTAX}")
    if name not in DEGRADATIONS and not _IMPORTED.fullmatch(name):
        raise ChainError(_unknown(name or text))
    if found is None:
        raise ChainError(f"{text!r}: {written!r} is no level; {_SYNTAX}")
    degradation = DEGRADATIONS.get(name) or Degradation(
        name, name, f"the function {name}", "its own unit", unknown_noise=True
    )
    is_range = found[1] is not None
    levels = tuple(map(float, written.split(".." if is_range else "/")))
    low, high = degradation.low, degradation.high
    if wrong := [level for level in levels if not low <= level <= high or (degradation.whole and level % 1)]:
        raise ChainError(f"{text!r}: {_no_level(wrong[0], degradation)}")
    if is_range and levels[0] > levels[1]:
        raise ChainError(f"{text!r}: the low end comes first, {name}:{levels[1]:g}..{levels[0]:g}")
    return Step(degradation, levels, "uniform" if is_range and levels[0] < levels[1] else "list")


def _no_level(level: float, degradation: Degradation) -> str:
    kind = "whole numbers" if degradation.whole else "numbers"
    return (
        f"{level:g} is no level of {degradation.name}, which takes {kind} from {degradation.low:g} to "
        f"{degradation.high:g} ({degradation.unit})"
    )


def _near(name: str) -> str:
    return next(iter(difflib.get_close_matches(name, DEGRADATIONS, n=1, cutoff=0.5)), "")


def _unknown(name: str) -> str:
    hint = f"; did you mean {_near(name)}?" if _near(name) else ""
    return f"step {name!r} is unknown; there are {', '.join(DEGRADATIONS)}, or module:callable{hint}"
