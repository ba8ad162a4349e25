"""CBDNet, a blind denoiser that first estimates the noise (Guo et al.: Toward Convolutional Blind Denoising of Real
Photographs, CVPR 2019)."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from d2sm.models.activation_checkpointing import CheckpointedModule
from d2sm.models.sizes import padded


class CBDNet(CheckpointedModule):
    """Five convolutions estimate the noise level of every pixel; a U-Net then corrects the image, told both.

    No normalisation, ReLU after every convolution but the very last, skips are added. 4,365,382 parameters.

    Attributes:
        blind: True, the network takes no sigma.
        stride: 4, windows cut from an image must start at multiples of it to give the same result.
        receptive_field: side in pixels of the square of input pixels that one output pixel depends on.
        bytes_per_pixel: memory that restoring takes at most for a pixel of an image, without gradients, in float32.
    """

    blind: Final = True
    stride: Final = 4
    receptive_field: Final = 94
    bytes_per_pixel: Final = 1450  # measured

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
        """He's scale; the correction starts at zero, the estimate at about sigma 25 on every channel.

        A channel of the estimate that starts below zero everywhere would stay there, behind its ReLU without gradient.
        Measured on CamVid, noise up to sigma 75, 60 steps of 4 crops of 64, Adam at 5e-4: 21.3 dB, with PyTorch's own
        18.8 dB.
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

    def forward(self, noisy: Tensor) -> Tensor:
        """Restore a batch.

        Args:
            noisy: (B, 3, H, W), nominally in [0, 1] (noise may leave that range), any H and W.

        Returns:
            restored, (B, 3, H, W), not clamped.

        Raises:
            ValueError: on another shape of `noisy`.
        """
        return self.with_estimate(noisy)[0]

    def with_estimate(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the estimated standard deviation of the noise, for CBDNet's own objective.

        Returns:
            restored (B, 3, H, W), and estimate (B, 3, H, W) >= 0 in units of the image: sigma / 255.

        Raises:
            ValueError: on another shape of `noisy`.
        """
        whole = padded(noisy, self.stride, "CBDNet")
        height, width = noisy.shape[-2:]
        estimate = self.checkpointed(self.estimator, whole)
        full = self.checkpointed(self.at_full, torch.cat([whole, estimate], dim=1))
        half = self.checkpointed(self.at_half, full)
        half = self.checkpointed(self.merge_half, half + self.to_half(self.checkpointed(self.at_quarter, half)))
        restored = whole + self.checkpointed(self.merge_full, full + self.to_full(half))
        return restored[..., :height, :width], estimate[..., :height, :width]


def _convs(*channels: int) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, each with its ReLU."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
