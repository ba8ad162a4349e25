"""CBDNet, a blind denoiser that first estimates the noise (Guo et al.: Toward Convolutional Blind Denoising of Real
Photographs, CVPR 2019)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from d2sm.models.activation_checkpointing import CheckpointedModule
from d2sm.models.base import Denoiser


class CBDNet(Denoiser, CheckpointedModule):
    """Five convolutions estimate the noise level of every pixel; a U-Net restores the image, given image and estimate.

    No normalisation, ReLU after every convolution but the last, skip connections are added. 4,365,382 parameters.
    """

    blind = True
    stride = 4
    receptive_field = 94
    bytes_per_pixel = 1450  # measured

    def __init__(self) -> None:
        super().__init__()
        self.estimator = _convs(3, 32, 32, 32, 32, 3)
        self.at_full = _convs(6, 64, 64)
        self.at_half = nn.Sequential(nn.AvgPool2d(2), *_convs(64, 128, 128, 128))
        self.at_quarter = nn.Sequential(nn.AvgPool2d(2), *_convs(128, 256, 256, 256, 256, 256, 256))
        self.to_half = nn.ConvTranspose2d(256, 128, 2, stride=2)
        self.merge_half = _convs(128, 128, 128, 128)
        self.to_full = nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.merge_full = nn.Sequential(*_convs(64, 64, 64), nn.Conv2d(64, 3, 1))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """He initialisation; the correction starts at zero, the estimate at about sigma 25 in every channel.

        A channel of the estimate that starts negative everywhere would never learn: its ReLU passes no gradient.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        estimate, correction = self.estimator[-2], self.merge_full[-1]
        for last, scale, start in ((estimate, 0.03, 0.1), (correction, 0.0, 0.0)):
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.weight.mul_(scale)
            last.bias.fill_(start)

    def with_estimate(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """The restored image, and the estimated standard deviation of the noise, for CBDNet's own objective.

        Args:
            noisy: as in `forward`.

        Returns:
            restored (B, 3, H, W), and estimate (B, 3, H, W) >= 0 in units of the image: sigma / 255.

        Raises:
            ValueError: `noisy` of another shape.
        """
        restored, estimate = self._restore_and_estimate(self.pad(noisy))
        return self.crop(restored, noisy), self.crop(estimate, noisy)

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        return self._restore_and_estimate(noisy)[0]

    def _restore_and_estimate(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        estimate = self.checkpointed(self.estimator, noisy)
        full = self.checkpointed(self.at_full, torch.cat([noisy, estimate], dim=1))
        half = self.checkpointed(self.at_half, full)
        half = self.checkpointed(self.merge_half, half + self.to_half(self.checkpointed(self.at_quarter, half)))
        return noisy + self.checkpointed(self.merge_full, full + self.to_full(half)), estimate


def _convs(*channels: int) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
