"""Gaussian noise as in the paper: sigma / 255 in units of the image, not clipped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def add_noise(clean: Tensor, *, sigma: Tensor, seeds: Sequence[int]) -> Tensor:
    """Noisy images. The noise of an image is a function of its seed alone, not of its neighbours in the batch.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        sigma: (B,) standard deviations in units of 0..255.
        seeds: B integers, from `seed_of` or the plan of crops.

    Returns:
        (B, 3, H, W), not clipped, on the device of `clean`. The same seed gives the same noise on every machine with a
        device of this type and this version of torch; CPU and GPU have different generators.

    Raises:
        ValueError: sigma or seeds do not have one entry for each image.
    """
    if not len(clean) == len(sigma) == len(seeds):
        raise ValueError(f"sigma: {len(sigma)} levels and {len(seeds)} seeds for {len(clean)} images; give one each")
    generator = torch.Generator(clean.device)
    noise = torch.empty_like(clean, memory_format=torch.contiguous_format)
    for image, seed in zip(noise, seeds, strict=True):
        image.normal_(generator=generator.manual_seed(seed))
    return clean + noise * (sigma / 255).view(-1, 1, 1, 1)


def seed_of(name: str) -> int:
    """A stable seed from a file name, so that noise in evaluation depends neither on order nor on the processes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
