"""SADNet, a blind denoiser whose convolutions adapt their sampling positions to the texture (Chang et al.:
Spatial-Adaptive Network for Single Image Denoising, ECCV 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.models.activation_checkpointing import CheckpointedModule
from d2sm.models.base import Denoiser

_SLOPE = 0.2  # of every leaky ReLU
_OFFSETS = 32  # channels of the maps that offsets are computed from
_GROUPS, _TAPS = 8, 9  # of a deformable 3x3 convolution


class SADNet(Denoiser, CheckpointedModule):
    """An encoder of four scales (32, 64, 128, 256 channels), a context block at the coarsest, and a decoder of
    modulated deformable convolutions, whose offsets are passed on from coarse to fine. 4,234,723 parameters.

    `receptive_field` is that of a network whose offsets are all zero, as in a fresh one. Learned offsets reach further,
    without a bound. `restore` gives a tile a margin of the whole receptive field, twice what is needed at zero offsets,
    so tiles equal the whole image as long as the offsets along any path add up to less than half of it (in pixels of
    the image: an offset at 1/8 of the resolution counts eightfold).
    """

    blind = True
    stride = 8
    receptive_field = 268
    bytes_per_pixel = 4350  # measured; nine samples of every pixel of a map, for the deformable convolutions

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([_Residual(3, 32), *(_down(c) for c in (32, 64, 128))])
        self.context = _Context(256)
        self.coarsest = _Adaptive(256, first=True)
        self.decoder = nn.ModuleList(_Up(c) for c in (128, 64, 32))
        self.last = nn.Conv2d(32, 3, 3, padding=1)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """He initialisation; the correction and the offsets start at zero.

        The deformable convolutions then start as plain ones, with every mask at one half.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Adaptive):
                module.offsets.weight.zero_()
        self.last.weight.zero_()

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        maps = [noisy]
        for scale in self.encoder:
            maps.append(self.checkpointed(scale, maps[-1]))
        x, offset = self.coarsest(self.checkpointed(self.context, maps.pop()))
        for scale in self.decoder:
            x, offset = scale(x, maps.pop(), offset)
        return noisy + self.last(x)


class _Residual(nn.Module):
    """x + conv(leaky ReLU(conv(x))); a 1x1 convolution in front changes the number of channels if needed."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.first, self.second = _conv(c_out, c_out), _conv(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        out: Tensor = x + self.second(_leaky(self.first(x)))
        return out


def _down(channels: int) -> nn.Sequential:
    """To the next coarser scale: half the resolution, twice the channels."""
    halve = nn.Conv2d(channels, 2 * channels, 2, stride=2)
    return nn.Sequential(halve, nn.LeakyReLU(_SLOPE), _Residual(2 * channels, 2 * channels))


class _Context(nn.Module):
    """The context block: convolutions of four dilations in parallel, each on a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.reduce = nn.Conv2d(channels, quarter, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(quarter, quarter, 3, padding=dilation, dilation=dilation) for dilation in (1, 2, 3, 4)
        )
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        out: Tensor = x + self.fuse(torch.cat([_leaky(branch(reduced)) for branch in self.branches], dim=1))
        return out


class _Adaptive(CheckpointedModule):
    """The residual spatial-adaptive block: offsets are predicted, then used by a modulated deformable convolution.

    Args:
        channels: of the map.
        first: True at the coarsest scale, which has no coarser offsets to refine.
    """

    def __init__(self, channels: int, *, first: bool = False) -> None:
        super().__init__()
        self.look = _conv(channels, _OFFSETS)
        self.refine = None if first else _conv(2 * _OFFSETS, _OFFSETS)
        self.settle = _conv(_OFFSETS, _OFFSETS)
        self.offsets = _conv(_OFFSETS, 3 * _GROUPS * _TAPS)
        self.deform = _conv(channels, channels)  # holds the weights of the deformable convolution
        self.second = _conv(channels, channels)

    def forward(self, x: Tensor, coarser: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The adapted map (B, C, h, w), and the map of offsets (B, 32, h, w) for the next finer scale."""
        offset = self.checkpointed(self._offset, x, coarser)
        out: Tensor = x + self.checkpointed(self._adapted, x, offset)
        return out, offset

    def _offset(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        offset = _leaky(self.look(x))
        if self.refine is not None and coarser is not None:
            # An offset of one coarse pixel is an offset of two fine pixels.
            doubled = 2 * F.interpolate(coarser, scale_factor=2.0, mode="bilinear", align_corners=False)
            offset = _leaky(self.refine(torch.cat([offset, doubled], dim=1)))
        return _leaky(self.settle(offset))

    def _adapted(self, x: Tensor, offset: Tensor) -> Tensor:
        out: Tensor = self.second(_leaky(self._deformed(x, self.offsets(offset))))
        return out

    def _deformed(self, x: Tensor, sampling: Tensor) -> Tensor:
        """The deformable convolution. `sampling`: (down, right) in pixels for each group and tap, then the masks."""
        from torchvision.ops import deform_conv2d  # imported here: it takes more than a second

        weight, bias = self.deform.weight, self.deform.bias
        x, sampling = x.to(weight.dtype), sampling.to(weight.dtype)  # there is no bfloat16 kernel
        shifts, masks = sampling.split([2 * _GROUPS * _TAPS, _GROUPS * _TAPS], dim=1)
        out: Tensor = deform_conv2d(x, shifts, weight, bias, padding=1, mask=masks.sigmoid())
        return out


class _Up(CheckpointedModule):
    """A decoder stage: upsample by 2, concatenate with the encoder's map, then the adaptive block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.adapt = _Adaptive(channels)

    def forward(self, x: Tensor, skip: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.adapt(self.checkpointed(self._joined, x, skip), offset)
        return out

    def _joined(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.join(torch.cat([self.enlarge(x), skip], dim=1))
        return out


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)
