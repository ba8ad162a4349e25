"""VGG and EfficientNet-Lite0 in torch alone, with torchvision's and timm's names of weights and their very operations.

Importing torchvision or timm takes 2.5 s, nearly all of it for torch's compiler, and a training would do so in its
driver and in every worker. Sources: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
table 1, D and E; "EfficientNet", ICML 2019, table 1, in its Lite form: ReLU6, no squeeze-and-excitation, TensorFlow's
padding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_VGG = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # convolutions of each block
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
_LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class VGG(nn.Module):
    """VGG-16 or VGG-19 without batch normalisation: (B, 3, H, W) -> (B, 1000).

    Args:
        name: "vgg16" or "vgg19".
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block, convolutions in enumerate(_VGG[name]):
            width = min(64 << block, 512)
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True)]
        self.classifier = nn.Sequential(*hidden, nn.Dropout(), nn.Linear(4096, 1000))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return scores


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: (B, 3, H, W) -> (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem: nn.Module = _SameConv(3, 32, 3, stride=2)
        self.bn1 = _Norm(32, act=True)
        stages, channels = [], 32
        for blocks, kernel, stride, expansion, width in _LITE0:
            stage: list[nn.Module] = []
            for index in range(blocks):
                first = stride if index == 0 else 1
                stage.append(
                    _Separable(channels, width, kernel)
                    if expansion == 1
                    else _Inverted(channels, width, kernel, first, expansion)
                )
                channels = width
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = _Norm(1280, act=True)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(images)))))
        scores: Tensor = self.classifier(x.mean((2, 3)))
        return scores


class _SameConv(nn.Conv2d):
    """TensorFlow's padding of a convolution with a stride: the odd pixel lies to the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, left = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in images.shape[-2:])
        padded = F.pad(images, (left // 2, left - left // 2, top // 2, top - top // 2))
        return F.conv2d(padded, self.weight, None, self.stride, 0, self.dilation, self.groups)


class _Norm(nn.BatchNorm2d):
    """Batch normalisation with TensorFlow's eps, and ReLU6 after it if `act`."""

    def __init__(self, channels: int, *, act: bool) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        if maps.is_meta:  # shapes alone are asked for, and torch's meta kernel for this imports its compiler: 1.6 s
            return maps
        out: Tensor = self.act(super().forward(maps))
        return out


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    return _SameConv(channels, channels, kernel, stride=stride, groups=channels)


class _Separable(nn.Module):
    """A depthwise convolution and one of 1 x 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(inputs, kernel, 1)
        self.bn1 = _Norm(inputs, act=True)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = _Norm(outputs, act=False)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(maps))))
        return out


class _Inverted(nn.Module):
    """An inverted residual: wider by `expansion`, depthwise, narrow again; added to its input where both fit."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv_pw = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = _Norm(middle, act=True)
        self.conv_dw = _depthwise(middle, kernel, stride)
        self.bn2 = _Norm(middle, act=True)
        self.conv_pwl = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = _Norm(outputs, act=False)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(maps))))))
        return out + maps if self.residual and not maps.is_meta else out  # of a meta tensor see `_Norm`
