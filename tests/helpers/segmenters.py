"""Segmenters of a few lines, named in configurations as module:callable."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def segmenter(weights: object = None) -> nn.Module:
    """A seeded convolution: a network as good as any for whether numbers agree."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 19, 9, padding=4).eval()


def of_three(weights: object = None) -> nn.Module:
    """As `segmenter`, for a label set of three classes."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 3, 9, padding=4).eval()


def by_brightness(weights: Path | None) -> nn.Module:
    return Brightness()


def by_darkness(weights: Path | None) -> nn.Module:
    """The opposite of `by_brightness`; neither has weights."""
    return Darkness()


def without_numbers(weights: Path | None) -> nn.Module:
    """`segmenter` with weights of NaN."""
    found = segmenter()
    for parameter in found.parameters():
        nn.init.constant_(parameter, float("nan"))
    return found


class Brightness(nn.Module):
    """A segmenter by brightness alone: 19 steps from black to white."""

    def forward(self, image: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, 19).view(1, -1, 1, 1)
        return -(image.mean(1, keepdim=True) - steps).abs()


class Darkness(Brightness):
    """A segmenter by darkness alone."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(1 - image)


def from_file(weights: Path | None) -> nn.Module:
    """The convolution of `segmenter`, with the number in a file added to its weights."""
    found = segmenter()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(float(Path(weights or "").read_text()))
    return found


def mortal(weights: Path | None) -> nn.Module:
    """`by_brightness`, which kills its process, or is slow, from a call on: see `Mortal`."""
    return Mortal(Path(weights or ""))


class Mortal(Brightness):
    """Its process is killed at call n if the file holds n; if it holds -n, calls from n on take two seconds.

    The file then holds 0, so that the process that takes its place is spared. Calls that check the segmenter, with
    other images than those of the scenes, do not count.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.calls, self.slow = file, 0, False

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] == 192:
            self.calls += 1
            at = int(self.file.read_text())
            if at and self.calls == abs(at):
                self.file.write_text("0")
                if at > 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.slow = True
            time.sleep(2 * self.slow)
        return super().forward(image)
