"""VGG and EfficientNet-Lite0 of our own: the names, the weights and the very numbers of torchvision's and timm's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from d2sm.classifiers import VGG, EfficientNetLite0
from d2sm.feature_networks import randomise


def outputs(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Scores and the gradient by the images, with weights drawn in the order of the network's modules."""
    randomise(network)
    network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, values in network.state_dict().items():
        if "running_" in name or name.startswith("classifier"):
            values.copy_(0.5 + torch.rand(values.shape, generator=generator) * 0.1)
    images = images.clone().requires_grad_()
    scores = network(images)
    (gradient,) = torch.autograd.grad(scores.square().mean(), images)
    return [scores, gradient]


@pytest.mark.parametrize("size", [(64, 64), (75, 97)])
def test_lite0_is_timms(size: tuple[int, int]) -> None:
    ours, theirs = EfficientNetLite0(), timm.create_model("tf_efficientnet_lite0", pretrained=False)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict()), "published files are matched by their order"
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    (features, of_ours), (wanted, of_theirs) = outputs(ours, images), outputs(theirs, images)
    torch.testing.assert_close(features, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-4, atol=1e-9)
    for stage in range(1, 8):
        cuts = [nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:stage])(images) for net in (ours, theirs)]
        assert torch.equal(*cuts), stage


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg_is_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = VGG(name), getattr(torchvision.models, name)(weights=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours, theirs = (net.features.to_empty(device="cpu") for net in (ours, theirs))
    assert str(ours) == str(theirs)
    images = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(outputs(ours, images), outputs(theirs, images), strict=True):
        assert torch.equal(found, wanted)


def test_phi_imports_neither_torchvision_nor_timm() -> None:
    code = (
        "import sys; from d2sm.features import features; "
        "features('vgg19.conv5_4', weights='random'); features('efficientnet_lite0.blocks.4'); "
        "print(*sorted({'torchvision', 'timm', 'torch._dynamo'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
