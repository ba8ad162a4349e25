"""ESPNet, a small segmentation network (Mehta et al.: ESPNet, ECCV 2018).

The names of the modules are those of the published state dicts, so that these load with strict keys.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Conv(nn.Module):
    """A convolution under the key `conv`."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _BR(nn.Module):
    """Batch normalisation and a PReLU per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(x))
        return out


class _CBR(nn.Module):
    """3x3 convolution, batch normalisation, PReLU."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)
        self.act = nn.PReLU(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class _Pyramid(nn.Module):
    """The common part of both ESP blocks: reduce, five dilated convolutions, cumulative sum, concatenate.

    The cumulative sum over the dilations (the paper's hierarchical feature fusion) removes the gridding artifacts of
    large dilations. The undilated branch is not part of it.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        n = c_out // 5
        if n < 1:
            raise ValueError(f"ESPNet: a block with {c_out} channels: needs at least 5, one for each dilation")
        self.c1 = _Conv(c_in, n, kernel, stride=stride)
        self.d1 = _Conv(n, c_out - 4 * n, 3)
        self.d2 = _Conv(n, n, 3, dilation=2)
        self.d4 = _Conv(n, n, 3, dilation=4)
        self.d8 = _Conv(n, n, 3, dilation=8)
        self.d16 = _Conv(n, n, 3, dilation=16)

    def pyramid(self, x: Tensor) -> Tensor:
        reduced = self.c1(x)
        total = self.d2(reduced)
        branches = [self.d1(reduced), total]
        for conv in (self.d4, self.d8, self.d16):
            total = total + conv(reduced)
            branches.append(total)
        return torch.cat(branches, dim=1)


class _ESP(_Pyramid):
    """The ESP block that keeps the resolution."""

    def __init__(self, c_in: int, c_out: int, *, residual: bool) -> None:
        super().__init__(c_in, c_out, kernel=1, stride=1)
        self.bn = _BR(c_out)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.pyramid(x)
        result: Tensor = self.bn(out + x if self.residual else out)
        return result


class _Down(_Pyramid):
    """The ESP block that halves the resolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, kernel=3, stride=2)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)
        self.act = nn.PReLU(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.pyramid(x)))
        return out


def _halved(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, 3, stride=2, padding=1)


class _Encoder(nn.Module):
    def __init__(self, classes: int, p: int, q: int) -> None:
        super().__init__()
        self.level1 = _CBR(3, 16, stride=2)
        self.b1 = _BR(16 + 3)
        self.level2_0 = _Down(16 + 3, 64)
        self.level2 = nn.Sequential(*(_ESP(64, 64, residual=True) for _ in range(p)))
        self.b2 = _BR(64 + 64 + 3)
        self.level3_0 = _Down(64 + 64 + 3, 128)
        self.level3 = nn.Sequential(*(_ESP(128, 128, residual=True) for _ in range(q)))
        self.b3 = _BR(128 + 128)
        self.classifier = _Conv(128 + 128, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The maps the decoder needs: `level1` and `a` at 1/2, `b` at 1/4, class scores at 1/8."""
        half = _halved(x)
        level1 = self.level1(x)
        a = self.b1(torch.cat([level1, half], dim=1))
        e = self.level2_0(a)
        b = self.b2(torch.cat([self.level2(e), e, _halved(half)], dim=1))
        g = self.level3_0(b)
        c = self.b3(torch.cat([g, self.level3(g)], dim=1))
        return level1, a, b, self.classifier(c)


class ESPNet(nn.Module):
    """ESPNet with its light decoder.

    Args:
        classes: channels of the logits (at least 5; 20 in the Cityscapes weights, 12 in the CamVid ones).
        p: residual ESP blocks at 1/4 (published: 2).
        q: residual ESP blocks at 1/8 (published: 8).
        shallow: which map at 1/2 the last stage takes: "conv", the 16 channels of the first convolution
            (the Cityscapes weights), or "pyramid", these and the halved image, 19 channels (CamVid's).
    """

    def __init__(self, classes: int = 20, p: int = 2, q: int = 8, shallow: Literal["conv", "pyramid"] = "conv") -> None:
        super().__init__()
        if classes < 5 or p < 1 or q < 1:
            raise ValueError(f"ESPNet: classes={classes}, p={p}, q={q}: needs classes >= 5, p >= 1, q >= 1")
        if shallow not in ("conv", "pyramid"):
            raise ValueError(f'ESPNet: shallow={shallow!r}: needs "conv" or "pyramid"')
        self.shallow = shallow
        self.encoder = _Encoder(classes, p, q)
        self.br = nn.BatchNorm2d(classes, eps=1e-3)
        self.up_l3 = nn.Sequential(_doubling(classes))
        self.level3_C = _Conv(64 + 64 + 3, classes, 1)
        self.combine_l2_l3 = nn.Sequential(_BR(2 * classes), _ESP(2 * classes, classes, residual=False))
        self.up_l2 = nn.Sequential(_doubling(classes), _BR(classes))
        self.conv = _CBR(classes + (16 if shallow == "conv" else 19), classes)
        self.classifier = _doubling(classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of an image.

        Args:
            x: (B, 3, H, W), normalised as the weights expect, any H and W (padded to multiples of 8 inside).

        Returns:
            (B, classes, H, W), unnormalised scores.
        """
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        level1, a, b, scores = self.encoder(padded)
        coarse = self.up_l3(self.br(scores))
        fine = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(b), coarse], dim=1)))
        detail = level1 if self.shallow == "conv" else a
        logits: Tensor = self.classifier(self.conv(torch.cat([fine, detail], dim=1)))
        return logits[..., :height, :width]


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
