"""The contract of a denoiser: what training, tiling and serving may ask of any backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Denoiser(nn.Module):
    """A backbone: noisy images in, restored images of the same size out, for any height and width.

    `forward` pads the images to a multiple of `stride`, calls `restore_padded` and crops its result. A subclass
    implements `restore_padded` and sets the attributes.

    Attributes:
        blind: True if the network estimates the noise itself; it then needs no sigma and does not use one.
        stride: the coarsest resolution of the network, in pixels. Windows cut from an image must start at multiples of
            it to give the result of the whole image.
        receptive_field: side in pixels of the square of input pixels that one output pixel depends on.
        bytes_per_pixel: peak memory of restoring an image in float32 without gradients, per pixel of the image.

    Example:
        >>> from d2sm.models import FFDNet
        >>> noisy = torch.rand(2, 3, 33, 47)
        >>> FFDNet(width=8, depth=3)(noisy, 25.0).shape
        torch.Size([2, 3, 33, 47])
    """

    blind: bool
    stride: int
    receptive_field: int
    bytes_per_pixel: int

    @property
    def label(self) -> str:
        """The network's name for people."""
        return type(self).__name__

    def forward(self, noisy: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """Restore a batch.

        Args:
            noisy: (B, 3, H, W), nominally in [0, 1] (noise may leave that range), any H and W.
            sigma: standard deviation of the noise in units of 0..255: one number for all images, or (B,). Required
                unless the network is blind.

        Returns:
            restored, (B, 3, H, W), not clamped.

        Raises:
            ValueError: `noisy` or `sigma` of another shape, or no sigma where one is needed.
        """
        padded = self.pad(noisy)
        levels = None if self.blind else noise_levels(sigma, noisy, self.label)
        return self.crop(self.restore_padded(padded, levels), noisy)

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        """Restore a batch (B, 3, H, W) whose H and W are multiples of `stride`; sigma is (B,), None if blind."""
        raise NotImplementedError

    def pad(self, noisy: Tensor) -> Tensor:
        """Repeat the last row and column until H and W are multiples of `stride`.

        Raises:
            ValueError: the shape is not (B, 3, H, W).
        """
        self._check_shape(noisy)
        height, width = noisy.shape[-2:]
        return F.pad(noisy, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")

    def _check_shape(self, noisy: Tensor) -> None:
        if noisy.dim() != 4 or noisy.shape[1] != 3:
            raise ValueError(f"{self.label}: noisy has shape {tuple(noisy.shape)}: needs (B, 3, H, W)")

    def crop(self, padded: Tensor, noisy: Tensor) -> Tensor:
        """The result for the padded images, at the size of `noisy`."""
        return padded[..., : noisy.shape[-2], : noisy.shape[-1]]


def label_of(model: nn.Module) -> str:
    """What messages call a network: its `label`, or the name of its class where it is no `Denoiser`."""
    return getattr(model, "label", type(model).__name__)


def noise_levels(sigma: float | Tensor | None, noisy: Tensor, caller: str) -> Tensor:
    """One noise level for each image.

    Args:
        sigma: a number or a tensor without dimensions, which counts for all images, or (B,); in units of 0..255.
        noisy: (B, 3, H, W).
        caller: name at the start of the error's message.

    Returns:
        (B,) on the device of `noisy`; float32 unless sigma already was a (B,) tensor of another type.

    Raises:
        ValueError: sigma is missing or of another shape.
    """
    if sigma is None:
        raise ValueError(f"{caller}: sigma is missing and the network is not blind: give the noise level, 0..255")
    batch = noisy.shape[0]
    if not isinstance(sigma, Tensor):  # filled on the device: a copied number would make an accelerator's host wait
        return torch.full((batch,), float(sigma), dtype=torch.float32, device=noisy.device)
    if sigma.dim() == 0:
        return sigma.to(noisy.device, torch.float32).expand(batch)
    if sigma.shape != (batch,):
        raise ValueError(
            f"{caller}: sigma has shape {tuple(sigma.shape)}: needs a number, or ({batch},), one per image"
        )
    return sigma.to(noisy.device)
