"""Backbones that spandrel knows, made of a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.config import Config
from pipelines.networks.models import ModelError, build, check
from pipelines.runs import checkpoint
from tests.helpers.checkpoints import bundle_of

pytest.importorskip("spandrel", reason="needs the package of d2sm[spandrel]")


def configured(**changes: Any) -> Config:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return Config().replace({"model.name": "spandrel"} | named)


def saved(network: nn.Module, path: Path) -> Path:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"params": state}, path)  # as BasicSR writes it
    return path


def dncnn(channels: int = 3, **options: Any) -> nn.Module:
    from spandrel.architectures.DnCNN import DnCNN

    torch.manual_seed(1)
    return DnCNN(in_nc=channels, out_nc=3 if channels == 4 else channels, nc=8, nb=8, act_mode="R", **options)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_that_spandrel_knows_is_made_of_its_weights(tmp_path: Path, suffix: str) -> None:
    network = dncnn()
    file = saved(network, tmp_path / f"dncnn{suffix}")
    config = configured(model__weights=str(file))
    model = check(config)
    assert model is not None and model.blind and model.label == "DnCNN"
    noisy = torch.rand(1, 3, 33, 47)
    torch.testing.assert_close(model.eval()(noisy), network.eval()(noisy), rtol=0, atol=1e-6)
    folder = bundle_of(tmp_path / "bundle", config)
    file.unlink()  # a checkpoint needs its own weights alone
    again = checkpoint.load_model(folder)[0]
    torch.testing.assert_close(again(noisy), network(noisy), rtol=0, atol=1e-6)
    assert again.receptive_field is not None and again.receptive_field >= 17


def test_a_network_with_a_noise_map_is_told_sigma(tmp_path: Path) -> None:
    network = dncnn(4, mode="FDnCNN").eval()
    model = build(configured(model__weights=str(saved(network, tmp_path / "f.pth"))).model).eval()
    assert not model.blind and list(model.state_dict()) == list(network.state_dict())
    noisy = torch.rand(2, 3, 16, 16)
    levels = torch.tensor([10.0, 50.0])
    expected: Tensor = network(torch.cat([noisy, (levels / 255).view(2, 1, 1, 1).expand(2, 1, 16, 16)], 1))
    torch.testing.assert_close(model(noisy, levels), expected, rtol=0, atol=1e-6)
    assert model.receptive_field is not None


def test_a_file_that_spandrel_cannot_use_is_one_line(tmp_path: Path) -> None:
    from spandrel.architectures.Compact import Compact

    (tmp_path / "text.pth").write_text("text")
    torch.save({"a": torch.zeros(3)}, tmp_path / "unknown.pth")
    upscaler = Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=2)
    files = {
        "missing.pth": "cannot be read",
        "text.pth": "cannot be read",
        "unknown.pth": "knows no network with these weights",
        saved(upscaler, tmp_path / "twice.pth").name: "is for SR",
        saved(dncnn(1), tmp_path / "grey.pth").name: "maps 1 channels to 1",
    }
    for name, message in files.items():
        with pytest.raises(ModelError, match=f"^model.weights={tmp_path / name}: .*{message}") as error:
            build(configured(model__weights=str(tmp_path / name)).model)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="^model.weights: give the file"):
        check(configured())
