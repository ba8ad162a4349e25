"""Weights in the forms that others publish: read, converted, and computing what their own network computes."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import save_file

from d2sm.models import BACKBONES, FFDNet
from d2sm.weights import fingerprint
from pipelines.networks.models import build
from pipelines.networks.published import KAIR, KNOWN, MATLAB, OWN, PYTORCH, PublishedError, identify, read
from pipelines.sections import Model
from tests.helpers.published import PyTorchFFDNet, authors, convolutions, write_kair, write_matlab


def converted(path: Path) -> FFDNet:
    weights, _ = read(path)
    network = build(identify(weights, path))
    network.load_state_dict(weights)
    assert isinstance(network, FFDNet)
    return network.eval()


def test_kair_s_names(tmp_path: Path) -> None:
    layers = convolutions()
    weights, form = read(write_kair(tmp_path / "kair.pth", layers))
    assert form == KAIR and list(weights) == [f"body.{2 * k}.{kind}" for k in range(4) for kind in ("weight", "bias")]
    assert all(torch.equal(weights[f"body.{2 * k}.weight"], kernel) for k, (kernel, _) in enumerate(layers))


def test_the_authors_file_computes_what_their_network_computes(tmp_path: Path) -> None:
    """Kernels turned, pixels of a colour in another order, noise map last, red first: each would show here."""
    layers = convolutions(noise=0.5)
    path = write_matlab(tmp_path / "color.mat", layers)
    assert read(path)[1] == MATLAB
    noisy = torch.rand(1, 3, 12, 16)
    wanted = authors(layers, noisy, 40.0)
    assert (converted(path)(noisy, 40.0) - wanted).abs().max() < 1e-5
    assert (converted(path)(noisy.flip(1), 40.0).flip(1) - wanted).abs().max() > 0.01  # red and blue swapped


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_ffdnet_pytorch_s_network_becomes_a_wider_one_of_ours(tmp_path: Path, prefix: str) -> None:
    theirs = PyTorchFFDNet()
    path = theirs.save(tmp_path / "net_rgb.pth", prefix)
    weights, form = read(path)
    assert form == PYTORCH and identify(weights, path) == Model(width=16 + 24, depth=5)
    noisy = torch.randn(2, 3, 14, 18)  # below 0 and above 1 too
    with torch.no_grad():
        wanted = theirs(noisy, 30.0)
        assert (converted(path)(noisy, 30.0) - wanted).abs().max() < 2e-6
    assert (wanted - noisy).abs().max() > 0.05


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_each_backbone_is_recognised(tmp_path: Path, name: str, suffix: str) -> None:
    model = Model(name="ffdnet", width=8, depth=3) if name == "ffdnet" else Model(name=name)
    path, state = tmp_path / f"net{suffix}", build(model).state_dict()
    (torch.save if suffix == ".pth" else save_file)(state, path)
    weights, form = read(path)
    assert form == OWN and identify(weights, path) == model and fingerprint(weights) == fingerprint(state)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in FFDNet(8, 3).state_dict().items()}, path)
    assert {tensor.dtype for tensor in read(path)[0].values()} == {torch.float32}


def test_what_is_refused(tmp_path: Path) -> None:
    """Each with one line that names the file and what is wrong."""
    layers = convolutions()
    grey = [(torch.rand(64, 5, 3, 3), torch.rand(64)), (torch.rand(4, 64, 3, 3), torch.rand(4))]
    nan = [(kernel * torch.nan, bias) for kernel, bias in layers]
    plain = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.rand(96, 3, 7, 7)}, plain)
    nested = tmp_path / "nested.pth"
    torch.save({"state_dict": {"body.0.weight": torch.rand(8, 13, 3, 3)}}, nested)
    text = tmp_path / "text.mat"
    text.write_text("MATLAB 5.0 MAT-file")
    with h5py.File(tmp_path / "empty.mat", "w"):
        pass
    cases = {
        write_kair(tmp_path / "grey.pth", grey): "for grey images",
        write_matlab(tmp_path / "grey.mat", grey): "for grey images",
        write_kair(tmp_path / "nan.pth", nan): "body.0.weight holds numbers that are not finite",
        write_kair(tmp_path / "dncnn.pth", [(torch.rand(64, 3, 3, 3), torch.rand(64))]): "13 channels in, 12 out",
        write_kair(
            tmp_path / "gap.pth", [layers[0], (torch.rand(12, 20, 3, 3), torch.rand(12))]
        ): "not FFDNet for colour",
        write_matlab(tmp_path / "stride.mat", layers, stride=2.0): r"stride=\[2.0\], FFDNet's have 1",
        plain: r"features.0.weight is \(96, 3, 7, 7\)",
        nested: "not a plain state dict",
        text: "no MATLAB 7.3 file",
        tmp_path / "empty.mat": "holds no net/layers",
        tmp_path / "none.mat": "No such file",
        tmp_path / "none.pth": "No such file",
        PyTorchFFDNet(depth=2).save(tmp_path / "half.pth", "module.x"): "no network that is known here",
    }
    for path, why in cases.items():
        with pytest.raises(PublishedError, match=rf"{path.name}: .*{why}") as refused:
            identify(read(path)[0], path)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


def test_an_array_outside_the_file_is_not_read(tmp_path: Path) -> None:
    path = write_matlab(tmp_path / "color.mat", convolutions())
    (tmp_path / "secret").write_bytes(bytes(4 * 12))
    with h5py.File(path, "r+") as file:
        del file["net/layers"]
        file.create_dataset("net/layers", shape=(3, 1), dtype="f4", external=[(str(tmp_path / "secret"), 0, 48)])
    with pytest.raises(PublishedError, match="lies in another file"):
        read(path)


def test_the_published_files_hold_the_same_network(shared: Path) -> None:
    folder = shared / "data/weights"
    kair, authors_file = read(folder / "ffdnet_color_kair.pth")[0], read(folder / "ffdnet_color.mat")[0]
    assert kair.keys() == authors_file.keys() and all(torch.equal(kair[name], authors_file[name]) for name in kair)
    known = [fingerprint(kair), fingerprint(read(folder / "ffdnet_clip_color.mat")[0])]
    assert known == list(KNOWN)
