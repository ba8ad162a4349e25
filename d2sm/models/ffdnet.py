"""FFDNet for colour images (Zhang, Zuo, Zhang: FFDNet, IEEE TIP 2018)."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.models.activation_checkpointing import CheckpointedModule
from d2sm.models.sizes import padded

_PART = 6  # layers that forget together: three convolutions with their ReLUs


class FFDNet(CheckpointedModule):
    """A plain convolutional denoiser that works at half resolution and is told the noise level.

    The image is folded by 2 into 12 channels, one constant channel holding sigma/255 is appended, `depth`
    3x3 convolutions follow (ReLU between them, no normalisation, no residual), and the result is unfolded.
    852,108 parameters at the default size.

    Attributes:
        blind: False, the network needs sigma.
        stride: 2, windows cut from an image must start at multiples of it to give the same result.
        receptive_field: side in pixels of the square of input pixels that one output pixel depends on.
        bytes_per_pixel: memory that restoring takes at most for a pixel of an image, without gradients, in float32.

    Args:
        width: channels between the convolutions (the paper: 96 for colour).
        depth: number of convolutions (the paper: 12 for colour), at least 2.
    """

    blind: Final = False
    stride: Final = 2

    def __init__(self, width: int = 96, depth: int = 12) -> None:
        super().__init__()
        if width < 1 or depth < 2:
            raise ValueError(f"FFDNet: width={width}, depth={depth}: needs width >= 1 and depth >= 2")
        folded = 3 * self.stride**2
        channels = [folded + 1] + [width] * (depth - 1) + [folded]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(channels):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        # Every convolution reaches one cell of stride x stride pixels further to each side.
        self.receptive_field = self.stride * (2 * depth + 1)
        # A map takes a byte a pixel and channel: three, as a convolution may need a copy, and input and output.
        self.bytes_per_pixel = 3 * width + 60
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """He's scale, and the image's own channels handed through: the network begins as the identity.

        PyTorch's default shrinks the signal about 2.4 times a layer, and without a residual He's alone spends the first
        hundreds of steps learning to repeat the image. Measured on the built-in scenes, width 24, depth 7, 40 s of one
        core, sigma 25: 21.1 dB with He's, 25.7 dB so.
        """
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                through = min(3 * self.stride**2, module.in_channels, module.out_channels)
                module.weight[:through] = 0
                module.weight[range(through), range(through), 1, 1] = 1
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Restore a batch.

        Args:
            noisy: (B, 3, H, W), nominally in [0, 1] (noise may leave that range), any H and W.
            sigma: (B,), standard deviation of the noise in units of 0..255.

        Returns:
            restored, (B, 3, H, W), not clamped.

        Raises:
            ValueError: on another shape of `noisy` or `sigma`.
        """
        whole = padded(noisy, self.stride, "FFDNet")
        batch, _, height, width = noisy.shape
        if sigma.shape != (batch,):
            raise ValueError(f"FFDNet: sigma has shape {tuple(sigma.shape)}: needs ({batch},), one per image")
        folded = F.pixel_unshuffle(whole, self.stride)
        level = (sigma / 255).to(folded.dtype).view(batch, 1, 1, 1).expand(-1, 1, *folded.shape[2:])
        maps = torch.cat([folded, level], dim=1)
        few = _PART if self.is_checkpointing else len(self.body)  # a part's input is kept while it runs
        for start in range(0, len(self.body), few):
            maps = self.checkpointed(self._layers, maps, start, few)
        restored = F.pixel_shuffle(maps, self.stride)
        return restored[..., :height, :width]

    def _layers(self, maps: Tensor, start: int, few: int) -> Tensor:
        for layer in islice(self.body, start, start + few):
            maps = layer(maps)
        return maps
