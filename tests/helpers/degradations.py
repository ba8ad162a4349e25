"""Degradations that a configuration names as module:callable: one that keeps the contract, and some that do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def darker(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Divided by the level, with a little noise."""
    noise = torch.stack(
        [torch.rand(images[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    ).to(images)
    return images / level.to(images).view(-1, 1, 1, 1) + 0.01 * noise


def smaller(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Every second pixel."""
    return images[..., ::2, ::2]


def doubled(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """In float64."""
    return images.double()


def arrays(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> object:
    """NumPy's."""
    return images.numpy()


def forgetful(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Another result at every call."""
    return images + torch.rand_like(images)


def mixed(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Each image by all images of the batch."""
    return images - images.mean()


def in_place(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Writes into its input."""
    return images.mul_(0.5)


def endless(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """Divides by 0 at level 0."""
    return images / level.view(-1, 1, 1, 1)


def undefined_at_black(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """NaN where a value is 0."""
    return images.where(images > 0, torch.nan)


def old(clean: Tensor, sigma: Tensor) -> Tensor:
    """Called otherwise."""
    return clean + sigma


NOTHING = 5
