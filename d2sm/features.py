"""Phi: frozen, pretrained networks up to a named layer, and the cutting of their feature maps into samples.

vgg19.conv5_4, efficientnet_lite0.blocks.4, ...       networks with short names: `d2sm.feature_networks`
timm:resnet50.layer3, torchvision:resnet50.layer3     any network of these libraries: `d2sm.libraries`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2sm import feature_networks, libraries
from d2sm.feature_networks import FirstLayers, Scale
from d2sm.feature_weights import match, read
from d2sm.frozen import FrozenNetwork, unchanged
from d2sm.truncation import Layer, Truncated, maps_of, stride_between, truncate
from d2sm.weights import reason_of


class Features(FrozenNetwork):
    """Phi: (B, 3, H, W) RGB in [0, 1] -> (B, channels, h, w), h and w about H and W divided by `stride`.

    Always in eval mode, with frozen parameters; gradient flows to the images.

    Attributes:
        mean, std: normalisation of the images, buffers (1, 3, 1, 1) of the weights' type and on their device; None for
            a module of one's own (`wrap`).
        name: network and layer, for messages.
        stride: pixels between neighbouring cells of the map.
        channels: of the map.
        layers: those that `maps` gives, shallow to deep; the map is that of the last.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        stride: int,
        channels: int,
        scale: Scale | None = None,
        layers: Sequence[Layer] = (),
    ) -> None:
        super().__init__()
        self.net, self.name, self.stride, self.channels = net, name, stride, channels
        self.layers = tuple(layers) or (Layer(name, stride, channels),)
        for key, values in zip(("mean", "std"), scale or (None, None)):
            # Not of torch's default type or device, which may be another.
            buffer = None if values is None else next(net.parameters()).new_tensor(values).view(1, 3, 1, 1)
            self.register_buffer(key, buffer)
        self.requires_grad_(False).eval()

    def forward_chunk(self, images: Tensor) -> Tensor:
        images = self.normalised(images)
        try:
            out: Tensor = self.net(images)
        except RuntimeError:
            self._check_size(images)
            raise
        return out

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the forward pass, in place, but not that of a `Truncated` network, which is left by an exception."""
        if not isinstance(self.net, Truncated):
            super().compile(*args, **options)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of all layers in one pass, shallow to deep. For the whole batch at once, whatever `chunk_size`."""
        images = self.normalised(images)
        try:
            return _maps(self.net, images)
        except RuntimeError:
            self._check_size(images)
            raise

    def normalised(self, images: Tensor) -> Tensor:
        """The images as the network expects them.

        Raises:
            ValueError: another shape, type or device, or fewer pixels than one cell of the map.
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
        weight: Tensor | None = next(self.net.parameters(), None) if self.mean is None else self.mean
        if weight is not None and images.device != weight.device:
            raise ValueError(
                f"images: on {images.device}, but {self.name} is on {weight.device}; move the images, or the loss with "
                ".to(...)"
            )
        # In the precision of the weights, which is that of the buffers, whatever that of the images is.
        if self.mean is not None and self.std is not None:
            return ((images - self.mean) / self.std).to(self.mean.dtype)
        return images if weight is None or not weight.is_floating_point() else images.to(weight.dtype)

    def _check_size(self, images: Tensor) -> None:
        """After an error: whether it is one of images that are too small, but hold a cell of `stride` pixels.

        Raises:
            ValueError: the network runs on a larger image, but not on one of this size.
        """
        height, width = images.shape[2:]
        margin = max(libraries.SIDE, 8 * self.stride)
        if not self._runs(images, height, width) and self._runs(images, height + margin, width + margin):
            raise ValueError(
                f"images: {height}x{width} pixels give no feature cell of {self.name} (stride {self.stride}); use "
                "larger crops or an earlier layer"
            ) from None

    def _runs(self, images: Tensor, height: int, width: int) -> bool:
        try:
            with torch.no_grad():
                self.net(images.new_zeros(1, 3, height, width))
        except RuntimeError:
            return False
        return True


def features(name: str, *, weights: str | Path | None = None) -> Features:
    """Phi by "network.layer", such as "vgg19.conv5_4" or "timm:resnet50.layer3". Never downloads.

    Args:
        name: network and layer, see the module's docstring.
        weights: None: the installed ones, see `installed_weights`. A path: that file, a plain state dict of the
            network. "random": seeded random weights, for tests and for benchmarks of shape and cost only.

    Raises:
        ValueError: unknown network or layer; weights missing, unreadable, incomplete or of another network; a layer
            whose output is no map (B, C, h, w).
    """
    network, layer = split(name)
    return at_layers(network, [layer], weights=weights)


def at_layers(network: str, layers: Sequence[str], *, weights: str | Path | None = None) -> Features:
    """Phi at one or more layers of a network, as `split` names them; `Features.layers` has them shallow to deep.

    Raises:
        ValueError: as `features`; or no layer.
    """
    if libraries.is_library(network):
        sketch = truncate(
            libraries.on_meta(network), _checked(network, layers), name=network, image=libraries.meta_image()
        )
        found = _probe(sketch, [f"{network}.{layer}" for layer in sketch.layers], device="meta", side=libraries.SIDE)
        net, scale = libraries.build(network, sketch, weights=weights)
        return _features(net, found, scale)
    whole, by_name, scale = feature_networks.build(network, layers)
    order = list(by_name)
    wanted = sorted({order.index(layer) for layer in _checked(network, layers, example=order[-1])})
    start = FirstLayers(list(by_name.values())[: wanted[-1] + 1], wanted).eval()
    if len(wanted) > 1:  # an in-place ReLU would overwrite the map of the layer before it
        _forbid_inplace(start)
    found = _probe(start, [f"{network}.{order[index]}" for index in wanted], device="meta")
    if isinstance(weights, str) and weights == "random":
        feature_networks.randomise(start.to_empty(device="cpu"))
    else:
        path = installed_weights(network) if weights is None else Path(weights)
        # The whole network is loaded, though only `net` is kept, so that the file of another network is refused.
        whole.load_state_dict(match(read(path), whole.state_dict(), path), assign=True)
    return _features(start, found, scale)


def split(name: str) -> tuple[str, str]:
    """Network and layer of a name: "timm:resnet50.layer3" -> ("timm:resnet50", "layer3").

    Raises:
        ValueError: the library that it begins with has no such network.
    """
    if libraries.is_library(name):
        return libraries.split(name)
    network, _, layer = name.partition(".")
    return network, layer


def installed_weights(network: str) -> Path:
    """The file of a network's weights on this machine: in a package, or in a cache of torch or Hugging Face.

    Raises:
        ValueError: there is none; with the command that brings it.
    """
    if libraries.is_library(network):
        return libraries.installed_weights(network)
    return feature_networks.installed_weights(network)


def layers_of(network: str) -> list[Layer]:
    """The layers of a network that can be Phi, in the order in which they run, with stride and channels. Needs no
    weights.

    Raises:
        ValueError: the network is unknown.
    """
    if libraries.is_library(network):
        network, _ = split(network)
        return list(maps_of(libraries.on_meta(network), libraries.meta_image(), libraries.meta_image(2)))
    _, by_name, _ = feature_networks.build(network, [])
    return _probe(FirstLayers(list(by_name.values()), range(len(by_name))), list(by_name), device="meta")


def wrap(module: nn.Module, *, stride: int | None = None, name: str | None = None) -> Features:
    """Any module (B, 3, H, W) -> (B, C, h, w) as a Phi: frozen in place (no copy), without normalisation.

    Its stride is measured by running it on zeros of side 96 and 192: 96 more pixels give 96 / stride more cells,
    however the module pads. So the stride must divide 96; otherwise (a ViT with patches of 14) give `stride`.

    Args:
        module: a `truncation.Truncated` one gives all its layers.
        name: for messages; None: the name of the module's class.

    Raises:
        ValueError: the module fails on such images, its output is not (B, C, h, w), its stride cannot be measured or is
            not the given one, or it changes its images in place.
    """
    if isinstance(module, Features):
        return module
    _forbid_inplace(module)  # an in-place ReLU in front would overwrite the images
    module.requires_grad_(False).eval()
    weight = next(module.parameters(), torch.zeros(()))
    name = name or type(module).__name__
    names = [f"{name}.{layer}" for layer in module.names] if isinstance(module, Truncated) else [name]
    side = 8 * stride if stride else 96
    found = _probe(module, names, device=weight.device, dtype=weight.dtype, side=side)
    if stride not in (None, found[-1].stride):
        raise ValueError(f"stride: {name} has stride {found[-1].stride}, not {stride}; leave stride out")
    return _features(module, found, None)


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


def _features(net: nn.Module, layers: Sequence[Layer], scale: Scale | None) -> Features:
    name, stride, channels = layers[-1]
    return Features(net, name=name, stride=stride, channels=channels, scale=scale, layers=layers)


def _maps(net: nn.Module, images: Tensor) -> list[Tensor]:
    return net.maps(images) if isinstance(net, (FirstLayers, Truncated)) else [net(images)]


def _checked(network: str, layers: Sequence[str], *, example: str = "") -> Sequence[str]:
    if not layers:
        raise ValueError(f"layers: none of {network}; name one or more" + (f", such as {example}" if example else ""))
    return layers


def _forbid_inplace(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]


def _probe(
    net: nn.Module,
    names: Sequence[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    side: int = 96,
) -> list[Layer]:
    """Stride and channels of each map, measured in two runs; on the meta device these cost nothing.

    Raises:
        ValueError: the network fails, an output is no map (B, C, h, w), its stride cannot be measured, or the images
            are changed in place.
    """
    runs = []
    for length in (side, 2 * side):
        images = torch.zeros(1, 3, length, length, device=device, dtype=dtype)
        with torch.no_grad(), unchanged(images, f"features: {names[-1]}"):
            try:
                runs.append(_maps(net, images))
            except Exception as error:  # anybody's network may raise anything
                raise ValueError(
                    f"features: {names[-1]} fails on an image of {length}x{length}, by which its stride is measured: "
                    f"{reason_of(error)}; give a module that takes images of any size"
                ) from error
    found = []
    for name, small, large in zip(names, *runs, strict=True):
        if not isinstance(small, Tensor) or small.ndim != 4 or small.shape[0] != 1:
            got = tuple(small.shape) if isinstance(small, Tensor) else type(small).__name__
            raise ValueError(
                f"features: {name} returned {got} for one image, not a feature map (B, C, h, w); give another layer, a "
                "module that returns one map, or for several d2sm.layers.Layers([wrap(a), wrap(b)])"
            )
        stride = stride_between(side, small.shape[2:], large.shape[2:])
        if stride is None:
            cells = [b - a for a, b in zip(small.shape[2:], large.shape[2:], strict=True)]
            raise ValueError(
                f"stride: that of {name} cannot be measured ({side} more pixels give {cells} more cells); give the "
                "stride of a module, d2sm.features.wrap(module, stride=14), or a layer whose map grows with the image"
            )
        found.append(Layer(name, stride, small.shape[1]))
    return found
