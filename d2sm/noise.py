"""Noise: Gaussian as in the paper (sigma / 255 in units of the image, not clipped), as in 8-bit files, of a sensor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

READ_NOISE = 2.0  # electrons, of `poisson`: of the order that CMOS sensors have


def add_noise(clean: Tensor, *, sigma: Tensor, seeds: Sequence[int]) -> Tensor:
    """Noisy images. The noise of an image is a function of its seed alone, not of its neighbours in the batch.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        sigma: (B,) standard deviations in units of 0..255.
        seeds: B integers, from `seed_of` or the plan of crops.

    Returns:
        (B, 3, H, W), not clipped, on the device and of the type of `clean`. The same seed gives the same noise, with
        one version of torch, on every CPU with AVX2 and on every GPU of one kind; CPU and GPU have generators of their
        own.

    Raises:
        ValueError: sigma or seeds do not have one entry for each image.
    """
    if not len(clean) == len(sigma) == len(seeds):
        raise ValueError(f"sigma: {len(sigma)} levels and {len(seeds)} seeds for {len(clean)} images; give one each")
    generator = torch.Generator(clean.device)
    noise = torch.empty_like(clean, memory_format=torch.contiguous_format)
    for image, seed in zip(noise, seeds, strict=True):
        image.normal_(generator=generator.manual_seed(seed))
    return (clean + noise * (sigma / 255).view(-1, 1, 1, 1)).to(clean.dtype)  # sigma's type may be a wider one


def gaussian(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `noise`: `add_noise` at sigma = level, 0..255."""
    return add_noise(images, sigma=level.to(images.device, non_blocking=True), seeds=seeds)


def clipped(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `noise_clip`: noise of sigma = level, 0..255, as an 8-bit file holds it.

    The noise is that of `gaussian`; then values outside [0, 1] are clipped, and all are rounded to multiples of 1/255.
    """
    return to_8_bits(gaussian(images, level=level, seeds=seeds))


def poisson(images: Tensor, *, level: Tensor, seeds: Sequence[int]) -> Tensor:
    """The degradation `poisson`: photon noise, which grows with the signal, and read noise, which does not.

    A pixel x gives Poisson(x * level) electrons, to which the sensor's read noise adds N(0, `READ_NOISE` ** 2). The
    variance of the result is x / level + (READ_NOISE / level) ** 2.

    Args:
        level: (B,) electrons of a pixel of 1 (white): 1000 is a good exposure, 10 a dark one.

    Returns:
        (B, 3, H, W), not clipped; below 0 a pixel counts as 0. As `add_noise`, equal on machines of one type of device.
    """
    generator = torch.Generator(images.device)
    noisy = torch.empty_like(images, memory_format=torch.contiguous_format)
    for image, target, electrons, seed in zip(images, noisy, level.tolist(), seeds, strict=True):
        generator.manual_seed(seed)
        image = image.to(torch.promote_types(image.dtype, torch.float32))  # float16 ends at 65504 electrons
        counted = torch.poisson(image.clamp(min=0).contiguous() * electrons, generator=generator)
        read = torch.empty_like(counted).normal_(generator=generator)
        target.copy_((counted + READ_NOISE * read) / electrons)
    return noisy


def to_8_bits(images: Tensor) -> Tensor:
    """The values that an 8-bit file holds of images: clipped to [0, 1] and rounded to multiples of 1/255."""
    return images.clamp(0, 1).mul(255).round() / 255


def seed_of(name: str) -> int:
    """A stable seed from a file name, so that noise in evaluation depends neither on order nor on the processes.

    A name that is not UTF-8 counts by its bytes.
    """
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1
