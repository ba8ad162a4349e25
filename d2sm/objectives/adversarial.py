"""Adversarial loss on Phi's features (Goodfellow et al.: Generative Adversarial Nets, NeurIPS 2014)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm

from d2sm.frozen import exclude_from_state_dict
from d2sm.images import RangeCheck, check_pair
from d2sm.layers import phi_of

_EPSILON = 1e-8


class Losses(NamedTuple):
    """Scalars in float32. No parameter has a gradient by both, so the sum of both can be minimised in one pass."""

    network: Tensor
    discriminator: Tensor


class Adversarial(nn.Module):
    """A discriminator D tells Phi of restored from Phi of clean crops; the network is trained to fool it.

        f^x = Phi(x) / rms, f^y = Phi(y) / rms               maps of restored and clean, each of mean square 1
        L_network       = -mean D(f^x)                        gradient to x, none to D
        L_discriminator = mean max(0, 1 - D(f^y)) + mean max(0, 1 + D(f^x))      gradient to D, none to x

    The hinge loss (Lim, Ye: Geometric GAN, arXiv 1705.02894) with spectral normalisation (Miyato, Kataoka, Koyama,
    Yoshida: Spectral Normalization for Generative Adversarial Networks, ICLR 2018): together they are stable without a
    second-order penalty. The largest singular value of each layer's weight is 1, so the gradient that D passes to the
    network is bounded however well D discriminates. The mean square of 1 removes the scale of Phi, which differs
    between networks by orders of magnitude; D2SM's cosine does the same.

    With several ranks, average the gradients of the discriminator (`distributed.average_gradients`). Do not wrap it in
    DistributedDataParallel: it runs twice a step, once without gradient to its weights.

    Several layers have a discriminator each, and both losses are their means.

    Args:
        features: Phi, as in `D2SMLoss`: network and layer, or any module (B, 3, H, W) -> (B, C, h, w), or `Layers`. It
            is frozen, kept in eval mode and out of `state_dict()`, which holds the discriminator's weights alone.
        weights: Phi's, see `features.features`.

    Raises:
        ValueError: as `layers.phi_of`.

    Example:
        >>> loss = Adversarial(nn.Conv2d(3, 8, 4, stride=4))
        >>> optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
        >>> clean = torch.rand(2, 3, 32, 32)
        >>> restored = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        >>> network, discriminator = loss(restored, clean)
        >>> (0.1 * network + discriminator).backward()
        >>> optimizer.step()
    """

    def __init__(self, features: str | nn.Module = "vgg19.conv5_4", *, weights: str | Path | None = None) -> None:
        super().__init__()
        self.features = phi_of(features, weights=weights)
        layers = [discriminator(layer.channels) for layer in self.features.layers]
        self.discriminator: nn.Module = layers[0] if len(layers) == 1 else nn.ModuleList(layers)
        self.check_range = RangeCheck()
        exclude_from_state_dict(self, "features")  # Phi finds its own weights

    def forward(self, restored: Tensor, clean: Tensor) -> Losses:
        """Both losses from one pass of Phi over each image. In training mode every call refines the spectral norms.

        Args:
            restored, clean: (B, 3, H, W) in [0, 1]; `restored` may leave the range.

        Raises:
            ValueError: wrong or unequal shapes, another range (`RangeCheck`), or images smaller than a cell of Phi.
        """
        check_pair(restored, clean)
        self.check_range(restored, clean)
        with torch.no_grad():
            f_y = self._normalised_features(clean)
        f_x = self._normalised_features(restored)
        several = isinstance(self.discriminator, nn.ModuleList)
        discriminators = list(self.discriminator.children()) if several else [self.discriminator]
        with torch.autocast(clean.device.type, enabled=False):
            losses = [_losses(each, x, y) for each, x, y in zip(discriminators, f_x, f_y, strict=True)]
        if len(losses) == 1:
            return losses[0]
        return Losses(*(torch.stack(of_layers).mean() for of_layers in zip(*losses, strict=True)))

    def _normalised_features(self, images: Tensor) -> list[Tensor]:
        """Phi's maps of each image, of mean square 1, in the precision of the discriminator."""
        found = self.features(images)
        dtype = next(self.discriminator.parameters()).dtype
        maps = [each.to(dtype) for each in (found if isinstance(found, list) else [found])]
        return [each / (each.square().mean((1, 2, 3), keepdim=True) + _EPSILON).sqrt() for each in maps]


def _losses(discriminator: nn.Module, f_x: Tensor, f_y: Tensor) -> Losses:
    frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    network = -functional_call(discriminator, frozen, (f_x,)).mean()
    of_restored, of_clean = discriminator(torch.cat([f_x.detach(), f_y])).chunk(2)
    return Losses(network, relu(1 - of_clean).mean() + relu(1 + of_restored).mean())


def discriminator(channels: int, *, width: int = 64) -> nn.Sequential:
    """(B, channels, h, w) -> a logit for every position, (B, 1, h, w), each from the 5 x 5 cells around it.

    Logits for positions, not for images, as in PatchGAN (Isola, Zhu, Zhou, Efros: Image-to-Image Translation with
    Conditional Adversarial Networks, CVPR 2017): 80 pixels at a stride of 16, close to K of D2SM's patches.
    """
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, width, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, 1, 1)),
    )
