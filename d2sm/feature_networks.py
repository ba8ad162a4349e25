"""The networks with short names of which Phi is a part: how they are built, and the names of their layers.

Layers in the order in which they run (named as torchvision's and timm's modules):

* ``vgg19``: conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1 ... conv5_4, relu5_4, pool5. The paper's
  choice is ``vgg19.conv5_4``: before its ReLU, stride 16, 512 channels. ``vgg16`` likewise, up to relu5_3.
* ``alexnet``: conv1, relu1, pool1, conv2, relu2, pool2, conv3, relu3, conv4, relu4, conv5, relu5, pool5.
* ``efficientnet_lite0``: conv_stem, bn1 (and its ReLU6), blocks.0 ... blocks.6. blocks.4: stride 16, 112 ch.
* ``squeezenet1_0``: conv1, relu1, pool1, fire2, fire3, fire4, pool4, fire5 ... fire8, pool8, fire9.
* ``squeezenet1_1``: conv1, relu1, pool1, fire2, fire3, pool3, fire4, fire5, pool5, fire6 ... fire9.

Each of them is a chain of layers, so Phi is its beginning. Networks of any other form: `d2sm.libraries`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.classifiers import VGG, EfficientNetLite0
from d2sm.feature_weights import lite0_file, torch_cache

Scale = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std per channel
IMAGENET: Scale = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite0's weights come from TensorFlow, where images are scaled to about [-1, 1]. The variances stored in
# its first BatchNorm fit photographs at this scale, and not with ImageNet's mean and std.
SIGNED: Scale = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class FirstLayers(nn.Sequential):
    """The beginning of a network that is a chain of layers; `wanted` are the indices of those that are asked for."""

    def __init__(self, layers: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        super().__init__(*layers)
        self.wanted = frozenset(wanted)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The outputs of the wanted layers, in the order in which they run."""
        found, x = [], images
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.wanted:
                found.append(x)
        return found


def build(network: str, layers: Sequence[str]) -> Built:
    """A network by its short name.

    Raises:
        ValueError: it is unknown, or does not have all of these layers.
    """
    _check_known(network)
    built = NETWORKS[network]()
    for layer in layers:
        if layer not in built[1]:
            raise ValueError(f"features: {network} has no layer {layer!r}{_suggestion(layer, built[1])}")
    return built


def _check_known(network: str) -> None:
    if network not in NETWORKS:
        hint = _suggestion(network, NETWORKS, cutoff=0.6)
        raise ValueError(
            f"features: unknown network {network!r}{hint}; those of timm and torchvision as timm:resnet50.layer3, "
            "torchvision:resnet50.layer3"
        )


def _suggestion(word: str, valid: Mapping[str, object], *, cutoff: float = 0.0) -> str:
    close = get_close_matches(word, valid, n=1, cutoff=cutoff)
    return f"; {f'did you mean {close[0]!r}? ' if close else ''}Valid: {', '.join(valid)}"


def randomise(net: nn.Module) -> None:
    """Seeded random weights, for tests and for benchmarks of shape and cost."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def installed_weights(network: str) -> Path:
    """The file of a network's weights that is installed on this machine.

    Raises:
        ValueError: the network is unknown, or there is none; with the command that brings it.
    """
    _check_known(network)
    if network == "efficientnet_lite0":
        return lite0_file()
    file = {
        "vgg19": "vgg19-dcbb9e9d.pth",
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
        "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    }[network]
    path = torch_cache() / file
    if not path.is_file():
        command = f"""python -c "import torchvision; torchvision.models.{network}(weights='DEFAULT')\""""
        raise ValueError(
            f"features: no weights of {network} at {path}; run {command}, give weights=FILE, or take "
            'features="efficientnet_lite0.blocks.4", whose weights are a Python package'
        )
    return path


# The whole network on the meta device, its layers by name, and the normalisation its weights expect.
Built = tuple[nn.Module, dict[str, nn.Module], Scale]


def _torchvision(name: str) -> Any:
    """A torchvision network on the meta device. Imported here because that takes more than a second."""
    models = import_module("torchvision.models")
    with torch.device("meta"):
        return getattr(models, name)(weights=None)


def _vgg(name: str) -> Built:
    with torch.device("meta"):
        whole = VGG(name)
    layers: dict[str, nn.Module] = {}
    block, index = 1, 0
    for module in whole.features:
        if isinstance(module, nn.MaxPool2d):
            layers[f"pool{block}"] = module
            block, index = block + 1, 0
            continue
        index += isinstance(module, nn.Conv2d)
        layers[f"{'conv' if isinstance(module, nn.Conv2d) else 'relu'}{block}_{index}"] = module
    return whole, layers, IMAGENET


def _alexnet() -> Built:
    whole = _torchvision("alexnet")
    names = ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2"]
    names += ["conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"]
    return whole, dict(zip(names, whole.features, strict=True)), IMAGENET


def _squeezenet(name: str, pooled: Sequence[int]) -> Built:
    """Version 1.0 or 1.1, which differ in the fire modules that are followed by pooling."""
    whole = _torchvision(name)
    names = ["conv1", "relu1", "pool1"]
    for index in range(2, 10):
        names += [f"fire{index}"] + ([f"pool{index}"] if index in pooled else [])
    return whole, dict(zip(names, whole.features, strict=True)), IMAGENET


def _lite0() -> Built:
    with torch.device("meta"):
        whole = EfficientNetLite0()
    blocks = {f"blocks.{index}": block for index, block in enumerate(whole.blocks)}
    return whole, {"conv_stem": whole.conv_stem, "bn1": whole.bn1} | blocks, SIGNED


NETWORKS: dict[str, Callable[[], Built]] = {
    "vgg19": partial(_vgg, "vgg19"),
    "vgg16": partial(_vgg, "vgg16"),
    "alexnet": _alexnet,
    "efficientnet_lite0": _lite0,
    "squeezenet1_0": partial(_squeezenet, "squeezenet1_0", (4, 8)),
    "squeezenet1_1": partial(_squeezenet, "squeezenet1_1", (3, 5)),
}
