"""Networks of timm and torchvision as Phi: cut after a layer, with weights that are here, never downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from d2sm.features import Features, features, layers_of, split
from d2sm.layers import Layers, phi
from d2sm.truncation import truncate


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """timm's ResNet-18 with random weights and statistics, and the file of its weights."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("timm") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network, path


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / std


def outputs(network: nn.Module, layers: list[str], images: Tensor) -> dict[str, Tensor]:
    """The slow way: the whole network, with a copy of each layer's output."""
    found: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, o.clone()))
        for name in layers
    ]
    with torch.no_grad():
        network(normalised(images))
    for handle in handles:
        handle.remove()
    return found


def test_a_layer_is_that_of_the_whole_network(resnet: tuple[nn.Module, Path]) -> None:
    network, path = resnet
    images = torch.rand(2, 3, 64, 96)
    for layer, stride, channels in (("bn1", 2, 64), ("layer2.0.conv1", 8, 128), ("layer3", 16, 256)):
        found = features(f"timm:resnet18.{layer}", weights=path)
        assert (found.name, found.stride, found.channels) == (f"timm:resnet18.{layer}", stride, channels)
        torch.testing.assert_close(found(images), outputs(network, [layer], images)[layer], rtol=0, atol=1e-6)


def test_several_layers_in_one_pass_are_those_of_the_whole_network(resnet: tuple[nn.Module, Path]) -> None:
    """Among them one that the network adds to in place, and one before an in-place ReLU."""
    network, path = resnet
    names = ["layer3", "layer2.0.bn2", "bn1", "layer1"]
    both = phi([f"timm:resnet18.{name}" for name in names], weights=[path] * 4)
    assert isinstance(both, Layers)
    assert [layer.stride for layer in both.layers] == [16, 8, 2, 4]
    passes = []
    both.network.get_submodule("net.network.conv1").register_forward_hook(lambda *_: passes.append(1))
    images = torch.rand(1, 3, 64, 64)
    wanted = outputs(network, names, images)
    for name, found in zip(names, both(images), strict=True):
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-6)
    assert len(passes) == 1


def test_nothing_after_the_layer_is_computed_or_kept(resnet: tuple[nn.Module, Path]) -> None:
    _, path = resnet
    cut = features("timm:resnet18.layer2.0", weights=path)
    inner: Any = cut.net.get_submodule("network")
    assert isinstance(inner.layer3, nn.Identity) and isinstance(inner.fc, nn.Identity)
    ran = []
    inner.layer2[1].register_forward_hook(lambda *_: ran.append("layer2.1"))
    images = torch.rand(1, 3, 64, 64).requires_grad_()
    cut(images).square().mean().backward()
    assert not ran and images.grad is not None and images.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in cut.parameters())
    assert not any(part.training for part in nn.Sequential(cut).train()[0].modules())


def test_the_gradient_is_that_of_the_whole_network(resnet: tuple[nn.Module, Path]) -> None:
    network, path = resnet
    x, y = (torch.full((1, 3, 64, 64), 0.4).requires_grad_() for _ in range(2))
    (features("timm:resnet18.layer3", weights=path)(x).square().sum()).backward()
    inner: Any = network
    deep = inner.layer3(inner.layer2(inner.layer1(inner.maxpool(inner.act1(inner.bn1(inner.conv1(normalised(y))))))))
    deep.square().sum().backward()
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6)


def test_chunks_give_the_same_maps_and_gradients(resnet: tuple[nn.Module, Path]) -> None:
    both = phi(["timm:resnet18.layer1", "timm:resnet18.layer2"], weights=[resnet[1]] * 2)
    images = torch.rand(5, 3, 32, 32)
    found = []
    for both.chunk_size in (None, 2):
        x = images.clone().requires_grad_()
        maps = both(x)
        torch.stack([m.square().mean() for m in maps]).sum().backward()
        found.append([*[m.detach() for m in maps], x.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_lite0_of_timm_is_the_one_with_a_short_name() -> None:
    """Its weights are a package's, its normalisation timm's own: bit for bit the same features."""
    images = torch.rand(1, 3, 96, 96)
    found, wanted = (features(name) for name in ("timm:tf_efficientnet_lite0.blocks.4", "efficientnet_lite0.blocks.4"))
    assert torch.equal(found(images), wanted(images))


def test_torchvision_with_weights_of_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"torchvision:resnet18 at .*resnet18-f37072fd.pth; run .*weights=FILE"):
        features("torchvision:resnet18.layer2")
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(1)
    full: Any = torchvision.models.resnet18(weights=None).eval()
    torch.save(full.state_dict(), tmp_path / "checkpoints/resnet18-f37072fd.pth")
    images = torch.rand(1, 3, 64, 64)
    found = features("torchvision:resnet18.layer2")(images)
    torch.testing.assert_close(found, outputs(full, ["layer2"], images)["layer2"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inception_sees_the_images_that_its_weights_expect(name: str, tmp_path: Path) -> None:
    """Published as trained on (x - 0.5) / 0.5; torchvision's network makes that of ImageNet's normalisation."""
    layer = {"googlenet": "conv1", "inception_v3": "Conv2d_1a_3x3"}[name]
    # As torchvision builds it together with its weights.
    full = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True).eval()
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    images = torch.rand(1, 3, 96, 96)
    found = features(f"torchvision:{name}.{layer}", weights=tmp_path / "weights.pth")(images)
    torch.testing.assert_close(found, outputs(full, [layer], images)[layer], rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(found, full.get_submodule(layer)((images - 0.5) / 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision:mnasnet0_5", "layers.8"),  # its loading asks for the version of the saved module
        ("torchvision:regnet_y_400mf", "stem"),  # cannot be built on the meta device
        ("torchvision:densenet121", "features.denseblock1.denselayer1"),  # the published keys are others
    ],
)
def test_networks_that_their_library_builds_or_loads_in_a_way_of_their_own(
    name: str, layer: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    full = torchvision.models.get_model(name.partition(":")[2]).eval()
    published = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    state = {published.sub(r"\1.\2.", key): value for key, value in full.state_dict().items()}
    assert (state.keys() != full.state_dict().keys()) == ("densenet" in name)
    torch.save(state, tmp_path / "weights.pth")
    images = torch.rand(1, 3, 64, 64)
    found = features(f"{name}.{layer}", weights=tmp_path / "weights.pth")(images)
    torch.testing.assert_close(found, outputs(full, [layer], images)[layer], rtol=0, atol=1e-6)


def test_a_segmentation_network_of_torchvision_downloads_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("downloads")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    found = features("torchvision:lraspp_mobilenet_v3_large.backbone.4", weights="random")
    assert (found.stride, found.channels) == (8, 40) and found.mean is not None


def test_other_heads_are_taken_and_other_networks_refused(resnet: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, _ = resnet
    state = network.state_dict()
    torch.save(state | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, tmp_path / "seven.pth")
    torch.save({key: value for key, value in state.items() if not key.startswith("fc")}, tmp_path / "none.pth")
    for name in ("seven.pth", "none.pth"):
        assert features("timm:resnet18.layer3", weights=tmp_path / name).channels == 256
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "deeper.pth")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    for name, key in (("deeper.pth", r"layer1\.2\.conv1"), ("other.pth", r"for conv1\.weight")):
        with pytest.raises(ValueError, match=rf"{name} has .*{key}.*give the weights of timm:resnet18") as error:
            features("timm:resnet18.layer3", weights=tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet18.layer33", "timm:resnet18 has no layer 'layer33'; did you mean 'layer3'"),
        ("timm:resnet18", "timm:resnet18 has no layer ''"),
        ("timm:resnet188.layer3", "timm has no network 'resnet188'; did you mean timm:resnet18"),
        ("torchvision:resnet19.layer3", "torchvision has no network 'resnet19'; did you mean torchvision:resnet1"),
        ("timm:resnet18.fc", r"resnet18.fc returned \(1, 1000\).*\(B, C, h, w\)"),
        ("torchvision:resnet18.layer3.0.relu", "'layer3.0.relu' of torchvision:resnet18 runs 2 times"),
        (  # timm 1.0.20 cannot build it without numbers
            "timm:vit_tiny_patch16_224.blocks.3",
            r"vit_tiny_patch16_224 fails on an image of .*384.*any size|"
            r"timm cannot build vit_tiny_patch16_224: Tensor.item\(\) cannot be called on meta tensors; "
            "take another network",
        ),
        ("timm:convnext_atto.stages.3.downsample.0.weight", "has no layer 'stages.3.downsample.0.weight'"),
        ("timm:resnet18.global_pool", r"global_pool returned \(1, 512\)"),
    ],
)
def test_what_cannot_be_phi_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        features(name, weights="random")
    assert "\n" not in str(error.value)


def test_tags_of_timm_are_part_of_the_network() -> None:
    assert split("timm:resnet50.a1_in1k.layer3") == ("timm:resnet50.a1_in1k", "layer3")
    assert split("timm:resnet50.layer3.0") == ("timm:resnet50", "layer3.0")
    assert split("vgg19.conv5_4") == ("vgg19", "conv5_4")
    with pytest.raises(ValueError, match=r"timm:resnet50.tv2_in1k at .*resnet50-11ad3fa6.pth"):
        features("timm:resnet50.tv2_in1k.layer3")


def test_building_draws_no_numbers_of_the_run() -> None:
    before = torch.get_rng_state()
    a, b = (features("timm:resnet10t.layer1", weights="random") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(a(images), b(images))


def test_the_layers_of_a_network_with_stride_and_channels() -> None:
    for network in ("timm:resnet18", "squeezenet1_0"):
        for layer in layers_of(network)[::9]:
            found = features(f"{network}.{layer.name}", weights="random")
            assert (found.stride, found.channels) == layer[1:]
    names = [layer.name for layer in layers_of("torchvision:resnet18")]
    assert "layer3" in names and "layer3.0.relu" not in names and "fc" not in names


def test_layers_of_several_networks_come_in_the_order_of_their_names(resnet: tuple[nn.Module, Path]) -> None:
    names = ["timm:resnet18.layer2", "squeezenet1_0.fire3", "timm:resnet18.layer1"]
    files: list[str | Path] = [resnet[1], "random", resnet[1]]
    both = phi(names, weights=files)
    assert isinstance(both, Layers) and [layer.name for layer in both.layers] == names
    images = torch.rand(1, 3, 64, 64)
    for name, file, found in zip(names, files, both(images), strict=True):
        torch.testing.assert_close(found, features(name, weights=file)(images), rtol=0, atol=1e-6)
    assert isinstance(phi(names[:1], weights=[resnet[1]]), Features)
    with pytest.raises(ValueError, match="squeezenet1_0.fire3 is named twice"):
        phi([names[1], names[1]], weights=["random", "random"])
    with pytest.raises(ValueError, match="one file for each network"):
        phi(names[::2], weights=[resnet[1], "random"])


def test_a_module_that_does_not_run_is_refused() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.used(images)
            return out

    with pytest.raises(ValueError, match="layer 'unused' of mine does not run"):
        truncate(Unused(), ["unused"], name="mine", image=torch.zeros(1, 3, 8, 8))
