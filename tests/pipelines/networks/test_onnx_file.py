"""Backbones as ONNX files: what ONNX Runtime computes is what the network computes, at sizes it was not exported at."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from d2sm.models import CBDNet, Denoiser, FFDNet, SADNet
from pipelines.networks.onnx_file import ExportError, write
from tests.helpers.networks import stirred

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the packages of d2sm[onnx]")


class _Deformed(Denoiser):
    """One modulated deformable convolution, whose offsets reach beyond the image."""

    blind, stride, receptive_field, bytes_per_pixel = True, 1, 99, 1000

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.offsets, self.weight = (
            torch.nn.Parameter(torch.randn(*size, generator=generator)) for size in ((27, 3, 3, 3), (3, 3, 3, 3))
        )

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        shifts, masks = torch.nn.functional.conv2d(noisy, self.offsets, padding=1).split([18, 9], dim=1)
        out: Tensor = deform_conv2d(noisy, 3 * shifts, self.weight, padding=1, mask=masks.sigmoid())
        return out


class _Fixed(Denoiser):
    """A value of the size it is exported at is frozen."""

    blind, stride, receptive_field, bytes_per_pixel = True, 1, 1, 10

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        return noisy * torch.from_numpy(np.array(float(int(noisy.shape[-1]) > 50), dtype=np.float32))


class _Other(Denoiser):
    """Computes something else while it is exported."""

    blind, stride, receptive_field, bytes_per_pixel = True, 1, 1, 10

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        return noisy * (2 if torch.compiler.is_exporting() else 1)


class _Undefined(Denoiser):
    """Gives NaN, and so does its file; or its file alone."""

    blind, stride, receptive_field, bytes_per_pixel = True, 1, 1, 10

    def __init__(self, in_file: bool) -> None:
        super().__init__()
        self.in_file = in_file

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        return noisy * float("nan" if torch.compiler.is_exporting() or not self.in_file else 1)


def sadnet() -> SADNet:
    """With offsets of its deformable convolutions, which are 0 at first; larger ones would magnify rounding further."""
    network = SADNet()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.003 * torch.randn_like(weight)
    return network


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: stirred(FFDNet(width=8, depth=3)), id="FFDNet"),
        pytest.param(_Deformed, id="deformed"),
        pytest.param(CBDNet, id="CBDNet", marks=pytest.mark.long),
        pytest.param(sadnet, id="SADNet", marks=pytest.mark.slow),
    ],
)
def test_the_file_computes_what_the_network_computes(make: Callable[[], Denoiser], tmp_path: Path) -> None:
    """SADNet's offsets magnify rounding, so it is as exact as the network in float32 is itself."""
    torch.manual_seed(1)
    network = make()
    compared = write(network, tmp_path / "net.onnx", {"d2sm.model": "runs/first"})
    assert compared.difference <= max(1e-5, 4 * compared.rounding) and compared.rounding < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["d2sm.model"] == "runs/first"
    inputs = {"noisy": torch.rand(2, 3, 21, 50)} | ({} if network.blind else {"sigma": torch.tensor([10.0, 50.0])})
    with torch.no_grad():
        wanted = network(*inputs.values())
    (restored,) = session.run(["restored"], {name: tensor.numpy() for name, tensor in inputs.items()})
    assert np.abs(restored - wanted.numpy()).max() <= max(1e-5, 8 * compared.rounding)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (_Fixed, "_Fixed: cannot be written as ONNX: .*static shape of 62"),
        (_Other, "_Other: its ONNX file fails, so none is written: its result differs from the network's by"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(network: type[Denoiser], why: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=why) as refused:
        write(network(), tmp_path / "net.onnx", {})
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("in_file, whose", [(True, "its"), (False, "the network's")])
def test_a_file_that_gives_nan_is_not_taken_for_exact(in_file: bool, whose: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"_Undefined: its ONNX file fails, .*: {whose} result is not finite"):
        write(_Undefined(in_file), tmp_path / "net.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else found(name, *rest))
    message = r"onnx, onnxscript, onnxruntime: not installed.*in the checkout, pip install -c pins.txt -e '\.\[onnx\]'$"
    with pytest.raises(ExportError, match=message):
        write(FFDNet(width=4, depth=3), tmp_path / "net.onnx", {})
