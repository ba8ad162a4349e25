"""The restoration networks that the package spandrel knows, made of a file of their weights.

Spandrel tells the architecture and its sizes from the names and shapes of the weights. The file is read by
`d2sm.weights`, not by spandrel, whose own reader unpickles; so a checkpoint of ours, whose weights have the names that
they have in the network, is enough to make the network again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.models import WrappedNetwork
from d2sm.weights import WeightsError, read_plain, read_safetensors
from pipelines.text import how_to_install, one_line

# Networks that are not called with an image in [0, 1] alone, or give more than one.
_OTHER_CALLS = ("FBCNN", "IPT", "MixDehazeNet")


class NoiseMapNetwork(WrappedNetwork):
    """A network that takes the noise level, in units of 0..1, as a fourth channel of the image."""

    def call(self, network: nn.Module, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        assert sigma is not None  # it is not blind
        level = (sigma / 255).to(noisy.dtype).view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        restored: Tensor = network(torch.cat([noisy, level], 1))
        return restored


def of_file(path: str, error: type[ValueError]) -> WrappedNetwork:
    """The network that a file holds the weights of.

    Args:
        path: safetensors, or what `torch.save` wrote: a state dict, or one within a dict, as the authors publish them.
        error: type of the error.

    Raises:
        error: spandrel is not installed; the file cannot be read, or is of no network that can be used. One line.
    """
    source = f"model.weights={path}"
    try:
        found = read_safetensors(path)[0] if Path(path).suffix == ".safetensors" else read_plain(path)
    except WeightsError as reason:
        raise error(f"{source}: cannot be read: {reason}") from None
    if not isinstance(found, dict):
        raise error(f"{source}: holds a {type(found).__name__} in place of weights")
    return _made(found, source, error)


def of_weights(weights: Mapping[str, Tensor], error: type[ValueError]) -> WrappedNetwork:
    """The network that a checkpoint holds the weights of. Raises as `of_file` does."""
    return _made(dict(weights), "model.name=spandrel: the checkpoint's weights", error)


def _made(state: dict[str, Any], source: str, error: type[ValueError]) -> WrappedNetwork:
    try:
        import spandrel
    except ModuleNotFoundError:
        raise error(
            f"model.name=spandrel: the package spandrel is not installed; {how_to_install('spandrel')}"
        ) from None
    try:
        found = spandrel.ModelLoader().load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        raise error(f"{source}: spandrel knows no network with these weights; give another file") from None
    except Exception as reason:  # of weights that are nearly a network's, its architectures raise anything
        raise error(f"{source}: spandrel cannot make a network of them: {one_line(reason)}") from reason
    kind = found.architecture.name
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose != "Restoration":
        raise error(f"{source}: {kind} is for {found.purpose}; give a network for restoration")
    if (found.scale, found.input_channels, found.output_channels) != (1, 3, 3):
        raise error(
            f"{source}: {kind} maps {found.input_channels} channels to {found.output_channels} at {found.scale} times "
            "the size; give a network for colour images that keeps their size"
        )
    sizes = found.size_requirements
    if found.architecture.id in _OTHER_CALLS or sizes.square:
        raise error(f"{source}: {kind} is not called with an image alone, of any size; give another network")
    with_map = found.architecture.id == "DRUNet" or "FDnCNN" in found.tags
    wrapper = NoiseMapNetwork if with_map else WrappedNetwork
    try:
        return wrapper(
            found.model.train().requires_grad_(True),
            blind=not with_map,
            multiple=sizes.multiple_of if sizes.multiple_of > 1 else None,
            minimum=sizes.minimum,
            tiles=found.tiling is spandrel.ModelTiling.SUPPORTED,
        )
    except ValueError as reason:
        raise error(f"{source}: {kind}: {one_line(reason)}; give another network") from None
