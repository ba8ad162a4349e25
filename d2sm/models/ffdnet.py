"""FFDNet for colour images (Zhang, Zuo, Zhang: FFDNet, IEEE TIP 2018)."""

from __future__ import annotations

from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.models.activation_checkpointing import CheckpointedModule
from d2sm.models.base import Denoiser

_SEGMENT = 6  # layers checkpointed together: three convolutions with their ReLUs


class FFDNet(Denoiser, CheckpointedModule):
    """A plain convolutional denoiser that works at half resolution and is given the noise level.

    The image is folded by 2 into 12 channels, one constant channel holding sigma/255 is appended, `depth`
    3x3 convolutions follow (ReLU between them, no normalisation, no residual), and the result is unfolded.
    852,108 parameters at the default size.

    Args:
        width: channels between the convolutions (the paper: 96 for colour).
        depth: number of convolutions (the paper: 12 for colour), at least 2.
    """

    blind = False
    stride = 2

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
        # Every convolution extends the receptive field by one cell of stride x stride pixels on each side.
        self.receptive_field = self.stride * (2 * depth + 1)
        # At half resolution in float32, a channel takes one byte for each pixel of the image. Three maps: a
        # convolution's input, its output and a copy that it may make; and the image itself.
        self.bytes_per_pixel = 3 * width + 60
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """He initialisation, but with the image's own channels passed through: the network starts as the identity.

        PyTorch's default shrinks the signal in every layer. With He initialisation alone, a network without a residual
        connection spends its first hundreds of steps learning to reproduce its input.
        """
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                passed = min(3 * self.stride**2, module.in_channels, module.out_channels)
                module.weight[:passed] = 0
                module.weight[range(passed), range(passed), 1, 1] = 1
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        assert sigma is not None  # `forward` requires it of a network that is not blind
        folded = F.pixel_unshuffle(noisy, self.stride)
        level = (sigma / 255).to(folded.dtype).view(-1, 1, 1, 1).expand(-1, 1, *folded.shape[2:])
        maps = torch.cat([folded, level], dim=1)
        # Without checkpointing all layers are one segment: a segment's input stays alive while it runs.
        length = _SEGMENT if self.is_checkpointing else len(self.body)
        for start in range(0, len(self.body), length):
            maps = self.checkpointed(self._layers, maps, start, length)
        return F.pixel_shuffle(maps, self.stride)

    def _layers(self, maps: Tensor, start: int, length: int) -> Tensor:
        for layer in islice(self.body, start, start + length):
            maps = layer(maps)
        return maps
