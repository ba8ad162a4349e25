"""Files of weights that others publish, converted to the names and conventions of the backbones.

FFDNet's colour weights exist in three forms (`FORMS`). Each converter turns one of them into a state dict of our
FFDNet that computes the same function: RGB in [0, 1], noise map sigma/255 behind the image, biases, no residual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from d2sm.models import BACKBONES
from d2sm.weights import WeightsError, read_state_dict
from pipelines.networks.matlab import read_matlab
from pipelines.networks.models import build
from pipelines.sections import Model
from pipelines.text import one_line

OWN, KAIR, MATLAB, PYTORCH = "d2sm", "KAIR", "MATLAB, the authors'", "ffdnet-pytorch"
FORMS = (OWN, KAIR, MATLAB, PYTORCH)
KNOWN = {
    "b68c7c3c310b2a93": "the published FFDNet for colour images",
    "c27fdef29eaa9373": "the published FFDNet for colour images whose noise is clipped to 8 bits",
}
"""Fingerprints of published weights under our names: with one of them, nothing was lost or swapped on the way."""

_REMEDY = (
    "give FFDNet's colour weights as KAIR (.pth), their authors (.mat) or ffdnet-pytorch (net_rgb.pth) publish them, "
    "or weights of a d2sm network (.safetensors, .pth)"
)
_KAIR = re.compile(r"model\.(\d+)\.(weight|bias)")
_PYTORCH = re.compile(r"(?:module\.)?intermediate_dncnn\.itermediate_dncnn\.(\d+)\.(\w+)")
_FOLDED = 12  # channels of the image at half resolution: 3 colours x 2 x 2 pixels
_COLUMNS_FIRST = [4 * colour + pixel for colour in range(3) for pixel in (0, 2, 1, 3)]
_EPSILON = 1e-5  # of torch's batch normalisation


class PublishedError(ValueError):
    """A file that holds weights of no network known here. One line, with the file's name."""


def read(path: str | Path, *, own: Collection[str] = ()) -> tuple[dict[str, Tensor], str]:
    """The weights of a file under the names of a backbone, and the form they came in, one of `FORMS`.

    A file in none of the published forms comes back as it is, with the form `OWN`.

    Args:
        own: names of the network that the weights are for; a file with just these is not converted.

    Raises:
        PublishedError: it cannot be read, is a published file of another network, or holds a number that is not finite.
    """
    try:
        weights, form = _converted(path, own)
    except WeightsError as error:
        raise PublishedError(f"{path}: {one_line(error)}; {_REMEDY}") from None
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise PublishedError(f"{path}: {one_line(name, 80)} holds numbers that are not finite; give another file")
    return weights, form


def identify(weights: Mapping[str, Tensor], source: str | Path) -> Model:
    """The backbone that weights are of, by names and shapes, as the model section of a configuration.

    Args:
        source: the file, for the message.

    Raises:
        PublishedError: they are of none.
    """
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for model in _candidates(shapes):
        with torch.device("meta"):
            if {name: tensor.shape for name, tensor in build(model).state_dict().items()} == shapes:
                return model
    name = next(iter(shapes), "")
    first = f"{one_line(name, 80)} is {tuple(shapes[name])}" if shapes else "it is empty"
    raise PublishedError(f"{source}: weights of no network that is known here ({first}); {_REMEDY}")


def _candidates(shapes: Mapping[str, torch.Size]) -> list[Model]:
    """The model sections that weights of these shapes might be of."""
    sizes: dict[str, dict[str, int]] = {}
    if (first := shapes.get("body.0.weight")) is not None and len(first) == 4:
        sizes["ffdnet"] = {"width": first[0], "depth": sum(name.endswith(".weight") for name in shapes)}
    found = []
    for name, backbone in BACKBONES.items():
        if set(backbone.options) <= sizes.get(name, {}).keys():
            try:
                found.append(Model(name=name, **sizes.get(name, {})))
            except ValueError:  # sizes that no configuration allows
                continue
    return found


def _converted(path: str | Path, own: Collection[str]) -> tuple[dict[str, Tensor], str]:
    if Path(path).suffix == ".mat":
        return _from_matlab(read_matlab(path)), MATLAB
    state = {name: _float(name, tensor) for name, tensor in read_state_dict(path).items()}
    for pattern, form, convert in _CONVERTERS:
        found = {name: pattern.fullmatch(name) for name in state}
        if state and all(found.values()) and state.keys() != set(own):
            parts: dict[int, dict[str, Tensor]] = {}
            for name, match in sorted(found.items()):
                assert match is not None
                parts.setdefault(int(match[1]), {})[match[2]] = state[name]
            return convert([parts[number] for number in sorted(parts)]), form
    return state, OWN


def _float(name: str, tensor: Tensor) -> Tensor:
    """As float32; a counter, such as batch normalisation has, stays whole."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise WeightsError(f"{one_line(name, 80)} is no plain tensor of numbers")
    return tensor.float() if tensor.is_floating_point() else tensor


def _from_kair(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return _ffdnet([(layer.get("weight"), layer.get("bias")) for layer in layers])


def _from_matlab(convolutions: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The authors count the four pixels of a colour down each column first, we along each row."""
    named = _ffdnet(convolutions)
    first, last = "body.0.weight", f"body.{2 * len(convolutions) - 2}"
    named[first] = torch.cat([named[first][:, _COLUMNS_FIRST], named[first][:, _FOLDED:]], dim=1)
    for kind in ("weight", "bias"):
        named[f"{last}.{kind}"] = named[f"{last}.{kind}"][_COLUMNS_FIRST]
    return named


def _from_pytorch(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """ffdnet-pytorch's network as one of ours that is 24 channels wider.

    It differs in three things. Batch normalisation is folded into the convolution before it. Its three noise maps are
    equal, so the kernels on them are added up. It predicts the noise, where ours gives the image: the additional
    channels carry the positive and the negative part of the noisy image through the ReLUs to the last layer, which
    subtracts the noise from it.
    """
    kernels: list[Tensor] = []
    biases: list[Tensor] = []
    for layer in layers:
        weight = layer.get("weight")
        if weight is None or layer.keys() - {
            "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
        }:  # fmt: skip
            raise WeightsError("a layer of ffdnet-pytorch's network is missing")
        if weight.dim() == 4:
            kernels.append(weight.double())
            biases.append(layer.get("bias", torch.zeros(len(weight))).double())
            continue
        try:
            scale = weight.double() / (layer["running_var"].double() + _EPSILON).sqrt()
            kernels[-1] = kernels[-1] * scale.view(-1, 1, 1, 1)
            biases[-1] = (biases[-1] - layer["running_mean"].double()) * scale + layer["bias"].double()
        except (KeyError, IndexError, RuntimeError):
            raise WeightsError("a batch normalisation of ffdnet-pytorch's network fits no convolution") from None
    width = len(kernels[0])
    chain = [kernel.shape[:2] for kernel in kernels]
    inner = [(width, width)] * (len(chain) - 2)
    if len(chain) < 2 or chain != [(width, _FOLDED + 3), *inner, (_FOLDED, width)]:
        raise WeightsError(f"not ffdnet-pytorch's network for colour (net_rgb.pth): kernels of {_shapes(kernels)}")
    kernels[0] = torch.cat([kernels[0][:, 3:], kernels[0][:, :3].sum(1, keepdim=True)], dim=1)
    return _ffdnet(list(zip(*_subtracting(kernels, biases), strict=True)))


def _subtracting(kernels: list[Tensor], biases: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Convolutions that predict the noise, made to give the image: noisy - noise."""
    one = torch.zeros(_FOLDED, _FOLDED, 3, 3, dtype=torch.float64)
    one[range(_FOLDED), range(_FOLDED), 1, 1] = 1
    zero = torch.zeros(2 * _FOLDED, dtype=torch.float64)
    signs = torch.cat([one, -one])  # both parts of the image; the ReLU makes them the positive and the negative one
    level = torch.zeros(2 * _FOLDED, 1, 3, 3, dtype=torch.float64)
    first = torch.cat([kernels[0], torch.cat([signs, level], dim=1)])
    inner = []
    for kernel in kernels[1:-1]:
        wide = torch.zeros(len(kernel) + 2 * _FOLDED, kernel.shape[1] + 2 * _FOLDED, 3, 3, dtype=torch.float64)
        wide[: len(kernel), : kernel.shape[1]] = kernel
        carried = torch.arange(2 * _FOLDED)
        wide[len(kernel) + carried, kernel.shape[1] + carried, 1, 1] = 1
        inner.append(wide)
    last = torch.cat([-kernels[-1], one, -one], dim=1)
    return [first, *inner, last], [*(torch.cat([bias, zero]) for bias in biases[:-1]), -biases[-1]]


def _ffdnet(convolutions: list[tuple[Tensor | None, Tensor | None]] | list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The state dict of our FFDNet with these convolutions.

    Raises:
        WeightsError: they are no FFDNet's for colour images.
    """
    named: dict[str, Tensor] = {}
    for number, (kernel, bias) in enumerate(convolutions):
        if kernel is None or bias is None or kernel.dim() != 4 or bias.shape != kernel.shape[:1]:
            raise WeightsError("not FFDNet: a convolution without a kernel or a bias")
        named[f"body.{2 * number}.weight"], named[f"body.{2 * number}.bias"] = kernel.float(), bias.float()
    kernels = [tensor for name, tensor in named.items() if name.endswith("weight")]
    ends = (kernels[0].shape[1], kernels[-1].shape[0]) if kernels else (0, 0)
    if ends == (5, 4):
        raise WeightsError(
            "FFDNet for grey images (5 channels in, 4 out); this project restores colour (13 in, 12 out)"
        )
    chained = all(one.shape[0] == other.shape[1] for one, other in pairwise(kernels))
    if ends != (_FOLDED + 1, _FOLDED) or not chained or {kernel.shape[2:] for kernel in kernels} != {(3, 3)}:
        raise WeightsError(f"not FFDNet for colour (13 channels in, 12 out): kernels of {_shapes(kernels)}")
    return named


def _shapes(kernels: list[Tensor]) -> str:
    shown = [str(tuple(kernel.shape)) for kernel in (kernels[:1] + kernels[-1:] if len(kernels) > 1 else kernels)]
    return " to ".join(shown) or "none"


_Converter = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]
_CONVERTERS: tuple[tuple[re.Pattern[str], str, _Converter], ...] = (
    (_KAIR, KAIR, _from_kair),
    (_PYTORCH, PYTORCH, _from_pytorch),
)
