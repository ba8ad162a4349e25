"""A backbone as an ONNX file for any batch, height and width, compared with the network itself before it gets its name.

The inputs are `noisy`, float32 (B, 3, H, W), and, unless the network is blind, `sigma`, float32 (B,), in units of
0..255. The output is `restored`, float32 (B, 3, H, W), not clamped.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.models import Denoiser
from pipelines.text import how_to_install, one_line

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20  # DeformConv came with 19
SIZES = ((1, 32, 32), (2, 45, 62), (1, 7, 9), (3, 24, 17), (1, 131, 90))  # images, height, width
_CLOSE = 1e-5  # of an image's range, which is 1
_ROUNDINGS = 4  # by which the two may differ, in units of the network's own rounding


class ExportError(ValueError):
    """A network that cannot be written as ONNX, or whose file computes something else. One line."""


@dataclass(frozen=True)
class Compared:
    """How far an ONNX file is from the network.

    Attributes:
        difference: the largest between the file's output, in ONNX Runtime, and the network's, over all of `SIZES`.
        rounding: the largest between the network in float32 and in float64, on the same images. Learned offsets of
            deformable convolutions magnify rounding, so this is what float32 can tell at all.
    """

    difference: float
    rounding: float


def check_packages() -> None:
    """Raise ExportError if a package is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ExportError(f"{', '.join(missing)}: not installed, and needed for ONNX; {how_to_install('onnx')}")


def write(network: Denoiser, path: Path, about: Mapping[str, str]) -> Compared:
    """Write a network as an ONNX file, and compare the two; a file that fails is removed.

    Args:
        network: on the CPU.
        about: becomes the file's metadata.

    Raises:
        ExportError: a package is missing; an operation has no ONNX form; the file differs from the network.
        OSError: it cannot be written.
    """
    check_packages()
    network = copy.deepcopy(network).eval().float().to(memory_format=torch.contiguous_format)
    program = _program(network)
    program.model.metadata_props.update(about)
    try:
        program.save(path)
        compared = _compare(network, path)
        limit = max(_CLOSE, _ROUNDINGS * compared.rounding)
        if not compared.difference <= limit:
            raise ValueError(f"its result differs from the network's by {compared.difference:.1e}, limit {limit:.1e}")
    except BaseException as error:  # ONNX Runtime has errors of its own, and somebody else's network any
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) or not isinstance(error, Exception):
            raise
        raise ExportError(f"{network.label}: its ONNX file fails, so none is written: {one_line(error)}") from None
    return compared


class _Plain(nn.Module):
    """A network with positional inputs alone: noisy, and sigma unless it is blind."""

    def __init__(self, network: Denoiser) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, *sigma: Tensor) -> Tensor:
        restored: Tensor = self.network(noisy, *sigma)
        return restored


def _program(network: Denoiser) -> Any:
    inputs = _inputs(network, (2, 45, 62))
    # Names, not `torch.export.Dim`s: with these torch 2.11 fails at what follows for the size that a network pads to.
    image, level = {0: "batch", 2: "height", 3: "width"}, {0: "batch"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own code
            return torch.onnx.export(
                _Plain(network),
                inputs,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["noisy", "sigma"][: len(inputs)],
                output_names=["restored"],
                dynamic_shapes=(image,) if network.blind else (image, (level,)),  # *sigma is one entry
                custom_translation_table=_translations(),
            )
    except Exception as error:  # torch's exporter raises whatever comes of an operation it cannot follow
        raise ExportError(f"{network.label}: cannot be written as ONNX: {one_line(_cause(error))}") from None


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _translations() -> dict[Any, Any]:
    """ONNX forms of operations that torch's exporter does not know."""
    import torchvision  # noqa: F401  registers its operations with torch
    from onnxscript import opset19

    def deform_conv2d(
        x: Any, weight: Any, offset: Any, mask: Any, bias: Any,
        stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
        groups: int, offset_groups: int, use_mask: bool,
    ) -> Any:  # fmt: skip
        """The same operation: offsets are ordered alike, and samples outside the map are 0 in both."""
        return opset19.DeformConv(
            x,
            weight,
            offset,
            bias,
            mask if use_mask else None,
            kernel_shape=[int(side) for side in weight.shape[2:]],
            strides=[stride_h, stride_w],
            pads=[pad_h, pad_w, pad_h, pad_w],
            dilations=[dilation_h, dilation_w],
            group=groups,
            offset_group=offset_groups,
        )

    return {torch.ops.torchvision.deform_conv2d.default: deform_conv2d}


def _inputs(network: Denoiser, size: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Noisy images, and a level for each unless the network is blind; a function of the size alone."""
    images, height, width = size
    generator = torch.Generator().manual_seed(height * 1000 + width)
    levels = torch.linspace(5, 60, images)
    ramp = torch.linspace(0, 1, width).expand(images, 3, height, width)
    noise = torch.randn(ramp.shape, generator=generator) * levels.view(-1, 1, 1, 1) / 255
    return (ramp + noise,) if network.blind else (ramp + noise, levels)


def _compare(network: Denoiser, path: Path) -> Compared:
    difference = rounding = 0.0
    for ours, exact, theirs in _results(network, path):
        if theirs.shape != ours.shape:
            raise ValueError(f"it gives {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        for whose, result in (("the network's", ours), ("its", theirs)):
            if not result.isfinite().all():  # a difference from NaN is never larger than another
                raise ValueError(f"{whose} result is not finite (NaN or infinite)")
        difference = max(difference, float((theirs - ours).abs().max()))
        rounding = max(rounding, float((ours - exact).abs().max()))
    return Compared(difference, rounding)


@torch.no_grad()
def _results(network: Denoiser, path: Path) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each of `SIZES` the result of the network in float32 and in float64, and that of the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    double = copy.deepcopy(network).double()
    for size in SIZES:
        inputs = _inputs(network, size)
        (restored,) = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
        exact = double(*(one.double() for one in inputs))
        yield network(*inputs).double(), exact, torch.from_numpy(restored).double()
