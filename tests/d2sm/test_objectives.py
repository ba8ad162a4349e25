"""Each objective against its definition written out in numpy or scikit-image, at a stated tolerance."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from d2sm import D2SMLoss, metrics
from d2sm.features import features, wrap
from d2sm.frozen import FrozenWrapper
from d2sm.layers import Layers
from d2sm.objectives import (
    L1,
    LPIPS,
    MSE,
    Adversarial,
    Contextual,
    CrossEntropy,
    NoiseAsymmetry,
    NoiseTotalVariation,
    Perceptual,
    SSIMLoss,
)
from d2sm.objectives.lpips import CHANNELS, LAYERS, Trunk, installed_heads
from d2sm.objectives.segmentation import ABSENT
from tests.helpers.objectives import images, write_heads

SQUEEZE: dict[str, Any] = {"network": "squeezenet1_0", "weights": "random"}


def maps(layer: str, pictures: Tensor) -> np.ndarray:
    """A layer of the random SqueezeNet by the other way there is, in float64."""
    with torch.no_grad():
        return features(f"squeezenet1_0.{layer}", weights="random")(pictures).double().numpy()


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("lpips") / "alex.pth")


@pytest.mark.parametrize("size", [(11, 11), (17, 40), (280, 300)])
def test_ssim_is_that_of_the_evaluation(size: tuple[int, int]) -> None:
    """scikit-image in float64; also at sizes that some libraries halve. Tolerance 1e-9, in float32 1e-5."""
    restored, clean = images(2, *size)
    restored = restored.clamp(0, 1)
    wanted = 1 - np.mean([metrics.ssim(x, y) for x, y in zip(restored, clean, strict=True)])
    assert SSIMLoss()(restored.double(), clean.double()).item() == pytest.approx(wanted, abs=1e-9)
    assert SSIMLoss()(restored, clean).item() == pytest.approx(wanted, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert SSIMLoss()(restored, clean).item() == pytest.approx(wanted, abs=1e-5)


def test_ssim_has_the_gradient_of_its_values() -> None:
    restored, clean = (image.double() for image in images(1, 12, 13))
    assert torch.autograd.gradcheck(lambda x: SSIMLoss()(x, clean), restored.requires_grad_(), atol=1e-6, rtol=1e-4)
    assert SSIMLoss()(clean, clean).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="clean: 10x20.* 11 "):
        SSIMLoss()(torch.rand(1, 3, 10, 20), torch.rand(1, 3, 10, 20))


def test_perceptual_is_the_mean_square_of_each_layer() -> None:
    """Tolerance 1e-5 relative; conv1 stands before a ReLU that must not write into it."""
    restored, clean = images()
    layers = ("fire3", "conv1", "relu1")
    wanted = np.mean([np.square(maps(layer, restored) - maps(layer, clean)).mean() for layer in layers])
    found = Perceptual(layers=layers, **SQUEEZE)(restored, clean)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    assert maps("conv1", clean).min() < 0


def test_lpips_is_its_definition(heads: Path) -> None:
    """In loops over layers and places, with the published scaling of the input. Tolerance 1e-5 relative."""
    loss = LPIPS(heads, "alexnet", weights="random")
    restored, clean = images(2, 70, 80)
    weights = torch.load(heads, weights_only=True)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    layers = list(loss.layers.network.net)
    total = 0.0
    for index, depth in enumerate((2, 5, 8, 10, 12)):  # steps up to each ReLU
        pair = []
        for picture in (restored, clean):
            x = (2 * picture - 1 - shift) / scale
            with torch.no_grad():
                for layer in layers[:depth]:
                    x = layer(x)
            pair.append(x.double().numpy())
        head = weights[f"lin{index}.model.1.weight"].numpy()[0, :, 0, 0]
        count, channels, height, width = pair[0].shape
        assert channels == len(head)
        for b in range(count):
            for place in np.ndindex(height, width):
                a, c = (m[(b, slice(None), *place)] for m in pair)
                difference = a / (np.linalg.norm(a) + 1e-10) - c / (np.linalg.norm(c) + 1e-10)
                total += float(head @ difference**2) / (count * height * width)
    assert loss(restored, clean).item() == pytest.approx(total, rel=1e-5)


def test_lpips_has_a_gradient_where_all_channels_are_zero(heads: Path) -> None:
    loss = LPIPS(heads, "alexnet", weights="random")
    for part in loss.layers.network.net:
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            part.bias.fill_(-1e3)
    restored, clean = images(1, 70, 70)
    loss(restored.requires_grad_(), clean).backward()
    assert restored.grad is not None and torch.isfinite(restored.grad).all()


@pytest.mark.parametrize(("trunk", "net"), [("vgg16", "vgg"), ("alexnet", "alex"), ("squeezenet1_1", "squeeze")])
def test_lpips_is_that_of_torchmetrics(trunk: Trunk, net: str) -> None:
    """The same random trunk in both, the published heads in both: values and gradients to 1e-6."""
    loss = LPIPS(trunk=trunk, weights="random")
    theirs: Any = torchmetrics_lpips._LPIPS(net=net, pnet_rand=True)
    own = [part for part in loss.layers.modules() if isinstance(part, nn.Conv2d)]
    others = [part for part in theirs.net.modules() if isinstance(part, nn.Conv2d)]
    for a, b in zip(own, others[: len(own)], strict=True):
        b.load_state_dict(a.state_dict())
    restored, clean = images(2, 96, 112)
    x, y = (restored.clone().requires_grad_() for _ in range(2))
    found, wanted = loss.distances(x, clean), theirs(y, clean, normalize=True).flatten()
    assert wanted.min() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert loss(x, clean).item() == pytest.approx(wanted.mean().item(), abs=1e-6)
    loss(x, clean).backward()
    wanted.mean().backward()
    assert x.grad is not None and y.grad is not None and y.grad.norm() > 1e-4
    assert (x.grad - y.grad).norm() < 1e-6 * y.grad.norm().clamp(min=1)


def test_lpips_reads_its_heads_without_importing_the_package_that_holds_them() -> None:
    code = (
        "import sys; from d2sm.objectives.lpips import _read, installed_heads; "
        "_read(installed_heads('alexnet'), 'alexnet'); print('torchmetrics' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_lpips_without_the_package_of_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "torchmetrics", raising=False)
    with pytest.raises(ValueError, match=r"heads: .*vgg16 .*pip install torchmetrics.*vgg\.pth") as error:
        installed_heads("vgg16")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="trunk='vgg19'.*squeezenet1_1"):
        LPIPS(trunk="vgg19", weights="random")  # type: ignore[arg-type]


@pytest.mark.parametrize("trunk", ["vgg16", "alexnet", "squeezenet1_1"])
def test_lpips_trunks_have_the_channels_of_their_heads(trunk: Any) -> None:
    assert [features(f"{trunk}.{layer}", weights="random").channels for layer in LAYERS[trunk]] == list(CHANNELS[trunk])


def test_lpips_heads_of_another_trunk_or_none(heads: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"heads: .*alex.pth.*lin1.model.1.weight \(1, 192, 1, 1\).*\(1, 128") as error:
        LPIPS(heads, "vgg16", weights="random")
    assert "\n" not in str(error.value)
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="heads: .*empty.pth.*lin0.model.1.weight"):
        LPIPS(tmp_path / "empty.pth", "alexnet", weights="random")
    with pytest.raises(ValueError, match="heads: .*none.pth"):
        LPIPS(tmp_path / "none.pth", "alexnet", weights="random")


def contextual_by_hand(x: np.ndarray, y: np.ndarray, h: float) -> float:
    """Eq. (1) to (5) for one image, (C, N) each."""
    mean = y.mean(1, keepdims=True)
    x, y = x - mean, y - mean
    n = x.shape[1]
    d = np.array([[1 - x[:, i] @ y[:, j] / np.linalg.norm(x[:, i]) / np.linalg.norm(y[:, j]) for j in range(n)]
                  for i in range(n)])  # fmt: skip
    w = np.array([[np.exp((1 - d[i, j] / (d[i].min() + 1e-5)) / h) for j in range(n)] for i in range(n)])
    cx = np.array([[w[i, j] / w[i].sum() for j in range(n)] for i in range(n)])
    return float(-np.log(np.mean([cx[:, j].max() for j in range(n)])))


@pytest.mark.parametrize("h", [0.1, 0.5])
def test_contextual_is_its_definition(h: float) -> None:
    """Tolerance 1e-4 relative: distances near 0 are divided by the smallest of them."""
    restored, clean = images(2, 40, 48)
    layers = ("fire3", "fire5")
    wanted = [
        contextual_by_hand(x.reshape(len(x), -1), y.reshape(len(y), -1), h)
        for layer in layers
        for x, y in zip(maps(layer, restored), maps(layer, clean), strict=True)
    ]
    loss = Contextual(layers=layers, bandwidth=h, **SQUEEZE)
    assert loss(restored, clean).item() == pytest.approx(np.mean(wanted), rel=1e-4)
    loss(restored.requires_grad_(), clean).backward()
    assert restored.grad is not None and torch.isfinite(restored.grad).all() and restored.grad.abs().max() > 0


def test_contextual_knows_no_places() -> None:
    """Non-aligned data: columns exchanged in whole cells of the features leave it where it was."""
    loss = Contextual(layers=("conv1",), **SQUEEZE)
    _, clean = images(1, 32, 64)
    moved = torch.cat([clean[..., 32:], clean[..., :32]], dim=-1)
    other = images(1, 32, 64, seed=9)[1]
    same, swapped, foreign = (loss(x, clean).item() for x in (clean, moved, other))
    assert same < 0.05
    assert swapped < 0.5 * foreign
    with pytest.raises(ValueError, match="bandwidth=0"):
        Contextual(layers=("conv1",), bandwidth=0, **SQUEEZE)


def segmenter(absent: int | None = None) -> nn.Module:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, picture: Tensor) -> Tensor:
            logits = 5 * self.conv(picture)
            if absent is not None:
                logits[:, absent] = ABSENT
            return logits

    return Small()


def drawn_labels(count: int, height: int, width: int) -> Tensor:
    labels = torch.randint(0, 6, (count, height, width), generator=torch.Generator().manual_seed(1)).byte()
    labels[:, :3] = 255
    return labels


def cross_entropy_by_hand(logits: np.ndarray, labels: np.ndarray, skip: tuple[int, ...] = (255,)) -> float:
    each = []
    for b in range(len(labels)):
        pixels = []
        for place in np.ndindex(*labels.shape[1:]):
            true = int(labels[(b, *place)])
            if true not in skip:
                scores = logits[(b, slice(None), *place)]
                pixels.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[true])
        each.append(np.mean(pixels) if pixels else 0.0)
    return float(np.mean(each))


def test_cross_entropy_is_its_definition() -> None:
    """Tolerance 1e-5 relative."""
    (restored, clean), labels = images(3, 10, 12), drawn_labels(3, 10, 12)
    labels[1, 2:] = 255  # hardly any label
    labels[1, 2, 5] = 4
    labels[2] = 255  # none
    with torch.no_grad():
        logits = segmenter()(restored).double().numpy()
    loss = CrossEntropy(segmenter())
    found = loss(restored.requires_grad_(), clean, labels=labels)
    assert found.item() == pytest.approx(cross_entropy_by_hand(logits, labels.numpy()), rel=1e-5)
    found.backward()
    assert restored.grad is not None
    assert [bool(grad.any()) for grad in restored.grad] == [True, True, False]
    shares = [loss(x[None], y[None], labels=z[None]) for x, y, z in zip(restored, clean, labels, strict=True)]
    assert torch.stack(shares).mean().item() == pytest.approx(found.item(), rel=1e-6)  # however it is dealt


def test_cross_entropy_leaves_out_what_the_segmenter_does_not_know() -> None:
    (restored, clean), labels = images(1, 10, 12), drawn_labels(1, 10, 12)
    with torch.no_grad():
        logits = segmenter(absent=2)(restored).double().numpy()
    wanted = cross_entropy_by_hand(logits, labels.numpy(), skip=(2, 255))
    assert CrossEntropy(segmenter(absent=2))(restored, clean, labels=labels).item() == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_does_not_hide_nan() -> None:
    restored, labels = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    restored[0, 0, 3, 3] = torch.nan
    assert CrossEntropy(segmenter())(restored, restored, labels=labels).isnan()


@pytest.mark.parametrize("wrong", [6, 254, -1])
def test_cross_entropy_refuses_raw_label_ids(wrong: int) -> None:
    restored, labels = torch.rand(2, 3, 8, 8), torch.full((2, 8, 8), 255)
    loss = CrossEntropy(segmenter())
    assert loss(restored, restored, labels=labels) == 0
    labels[1, 2, 3] = wrong
    with pytest.raises(ValueError, match=rf"labels: .* {wrong}.*0\.\.5 \(or 255\); map label ids"):
        loss(restored, restored, labels=labels)


def test_cross_entropy_refuses_labels_that_are_no_integers() -> None:
    with pytest.raises(ValueError, match=r"labels: torch.float32; give integer"):
        CrossEntropy(nn.Conv2d(3, 6, 1))(*images(1), labels=4 * torch.rand(1, *images(1)[0].shape[2:]))


def test_cross_entropy_at_a_scale_that_leaves_one_pixel() -> None:
    """Of which all logits are the same: those of the one pixel."""
    segmenter, (restored, clean) = nn.Conv2d(3, 6, 1), images(1)
    labels = torch.zeros(1, *restored.shape[2:], dtype=torch.long)
    value = CrossEntropy(segmenter, scale=1e-3)(restored, clean, labels=labels)
    pixel = nn.functional.interpolate(restored, size=(1, 1), mode="bilinear", align_corners=False)
    wanted = nn.functional.cross_entropy(segmenter(pixel).float(), torch.zeros(1, 1, 1, dtype=torch.long))
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [L1(), MSE()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixel_losses_of_half_precision_images_are_computed_in_float32(loss: nn.Module, dtype: torch.dtype) -> None:
    clean = torch.rand(2, 3, 32, 32).to(dtype)
    restored = (clean + 1e-4 * torch.rand(2, 3, 32, 32)).to(dtype)
    value = loss(restored.requires_grad_(), clean)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(restored.double(), clean.double()).item(), rel=1e-5)
    value.backward()
    assert restored.grad is not None and restored.grad.dtype == dtype


@pytest.mark.parametrize("loss", [L1(), MSE(), SSIMLoss()])
@pytest.mark.parametrize("name", ["restored", "clean"])
def test_images_of_0_to_255_are_refused(loss: nn.Module, name: str) -> None:
    given = {key: torch.rand(1, 3, 16, 16) for key in ("restored", "clean")}
    with pytest.raises(ValueError, match=f"{name}: torch.uint8; give floating point"):
        loss(**{**given, name: torch.ones(1, 3, 16, 16, dtype=torch.uint8)})


def small(*, chained: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Tanh()) if chained else nn.Conv2d(3, 8, 4, stride=4)


OF_PAIRS: dict[str, Callable[[], nn.Module]] = {
    "l1": L1,
    "mse": MSE,
    "ssim": SSIMLoss,
    "perceptual": lambda: Perceptual(small()),
    "contextual": lambda: Contextual(small()),
    "lpips": lambda: LPIPS(trunk="squeezenet1_1", weights="random"),
    "adversarial": lambda: Adversarial(small()),
    "d2sm": lambda: D2SMLoss(small(), queue_size=8),
}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_images_in_the_wrong_order_are_refused(name: str) -> None:
    """Most objectives have no gradient by the clean image: they would be left out of the training."""
    restored, clean = images(2, 40, 48)
    loss = OF_PAIRS[name]()
    restored.requires_grad_()
    with pytest.raises(ValueError, match=r"clean: requires a gradient .*\(restored, clean\).*detach"):
        loss(clean, restored)
    with torch.no_grad():
        loss(clean, restored.clamp(0, 1))
    loss(restored, clean.clone().requires_grad_())


@pytest.mark.parametrize("name", [name for name in OF_PAIRS if name not in ("l1", "mse")])
def test_the_range_of_the_images_is_checked(name: str) -> None:
    """`clean` in every call on the CPU, `restored` in the first."""
    restored, clean = images(2, 40, 48)
    for x, y, wrong in (
        (255 * restored, 255 * clean, "clean: values from .* to 2"),
        (2 * restored - 1, 2 * clean - 1, "clean: values from -"),
        (255 * restored, clean, "restored: values from .* to 2"),
    ):
        with pytest.raises(ValueError, match=rf"{wrong}.*in \[0, 1\], not 0..255"):
            OF_PAIRS[name]()(x, y)
    loss = OF_PAIRS[name]()
    loss(restored, clean)
    with pytest.raises(ValueError, match="clean: values from"):
        loss(restored, 255 * clean)
    loss(255 * restored, clean)


def test_a_network_that_diverges_is_no_matter_of_the_range() -> None:
    restored, clean = images(2, 40, 48)
    restored[1, 0, 3, 3] = torch.nan
    for name in ("ssim", "perceptual"):
        loss = OF_PAIRS[name]()
        assert loss(restored, clean).isnan()
        with pytest.raises(ValueError, match="restored: values from"):  # the first finite images are checked
            loss(255 * clean, clean)


def test_a_segmenter_is_given_no_images_of_0_to_255() -> None:
    (restored, clean), labels = images(1, 10, 12), drawn_labels(1, 10, 12)
    with pytest.raises(ValueError, match="restored: values from .* to 2"):
        CrossEntropy(segmenter())(255 * restored, clean, labels=labels)


def test_labels_on_another_device_are_refused() -> None:
    (restored, clean), labels = images(1, 10, 12), drawn_labels(1, 10, 12)
    with pytest.raises(ValueError, match="labels: on meta, but the images are on cpu"):
        CrossEntropy(segmenter())(restored, clean, labels=labels.to("meta"))


@pytest.mark.parametrize("objective", [Perceptual, Contextual])
def test_phi_is_given_as_to_d2sm(objective: type[Perceptual | Contextual]) -> None:
    """A module, a name with its layer, several of them; no default layer gets in the way."""
    pair = images(2, 40, 48)
    for module in (small(), small(chained=True)):
        assert torch.equal(objective(module)(*pair), objective(Layers([wrap(module)]))(*pair))
    by_layer = objective("squeezenet1_0", ("fire3",), weights="random")(*pair)
    assert torch.equal(objective("squeezenet1_0.fire3", weights="random")(*pair), by_layer)
    both = objective(["squeezenet1_0.fire3", "squeezenet1_0.fire5"], weights="random")
    assert torch.equal(both(*pair), objective("squeezenet1_0", ("fire3", "fire5"), weights="random")(*pair))
    with pytest.raises(ValueError, match="layers: fire5 beside 'squeezenet1_0.fire3'"):
        objective("squeezenet1_0.fire3", ("fire5",), weights="random")


def test_a_network_without_layers_has_those_of_the_objective() -> None:
    found = Layers.of("squeezenet1_0", None, default=("fire3",), weights="random")
    assert [layer.name for layer in found.layers] == ["squeezenet1_0.fire3"]


@pytest.mark.parametrize("make", [D2SMLoss, Adversarial, Perceptual, Contextual, Layers])
def test_a_list_of_modules_is_refused_with_the_remedy(make: Callable[[Any], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"Conv2d is no .*Layers\(\[wrap\(a\), wrap\(b\)\]\)") as error:
        make([small(), small()])
    assert "\n" not in str(error.value)


def test_cross_entropy_at_another_scale() -> None:
    seen: list[Tensor] = []
    network = segmenter()
    network.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    (restored, clean), labels = images(1, 16, 24), drawn_labels(1, 16, 24)
    assert CrossEntropy(network, scale=0.5)(restored, clean, labels=labels).isfinite()
    # Half the size, bilinear without antialiasing: the mean of each 2 x 2 pixels.
    torch.testing.assert_close(seen[0], nn.functional.avg_pool2d(restored, 2))
    with pytest.raises(ValueError, match=r"labels: .*\(1, 8, 24\).*\(1, 16, 24\)"):
        CrossEntropy(network)(restored, clean, labels=labels[:, ::2])
    with pytest.raises(ValueError, match="scale=0"):
        CrossEntropy(network, scale=0)


class InPlace(nn.Conv2d):
    """It normalises its images in place."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.mul_(2))


def test_a_segmenter_that_changes_the_restored_images_is_refused() -> None:
    restored = torch.rand(2, 3, 16, 16)
    loss, labels = CrossEntropy(InPlace(3, 19, 1)), torch.zeros(2, 16, 16, dtype=torch.long)
    for chunk_size in (None, 1):
        loss.segmenter.chunk_size = chunk_size
        with pytest.raises(ValueError, match="InPlace changes its images in place"):
            loss(restored, restored, labels=labels)
    with torch.inference_mode():
        assert CrossEntropy(nn.Conv2d(3, 19, 1))(torch.rand(2, 3, 16, 16), restored, labels=labels).isfinite()


def asymmetry(estimate: Tensor, sigma: Tensor) -> float:
    value: float = NoiseAsymmetry()(estimate, estimate, estimate=estimate, sigma=sigma).item()
    return value


def total_variation(estimate: Tensor) -> float:
    value: float = NoiseTotalVariation()(estimate, estimate, estimate=estimate).item()
    return value


def test_asymmetry_weighs_too_low_an_estimate_more() -> None:
    """Known answers: 0.7 of the square below, 0.3 above; and a loop at 1e-6 relative."""
    sigma = torch.tensor([51.0])  # 0.2
    low, high = (asymmetry(torch.full((1, 3, 2, 2), value), sigma) for value in (0.1, 0.3))
    assert low == pytest.approx(0.7 * 0.01, rel=1e-5)
    assert high == pytest.approx(0.3 * 0.01, rel=1e-5)
    estimate, sigma = torch.rand(4, 3, 5, 6) * 0.3, torch.tensor([5.0, 20.0, 40.0, 70.0])
    terms = []
    for place in np.ndindex(*estimate.shape):
        error = float(estimate[place]) - float(sigma[place[0]]) / 255
        terms.append(abs(0.3 - (1 if error < 0 else 0)) * error**2)
    assert asymmetry(estimate, sigma) == pytest.approx(np.mean(terms), rel=1e-6)
    with pytest.raises(ValueError, match=r"sigma: shape \(2,\)"):
        asymmetry(estimate, sigma[:2])


def test_total_variation_is_a_loop_and_does_not_grow_with_the_batch() -> None:
    """1e-6 relative; five copies of an image vary as much as one."""
    estimate = torch.rand(2, 3, 5, 7)
    array = estimate.double().numpy()
    down = [(array[b, c, i + 1, j] - array[b, c, i, j]) ** 2 for b, c, i, j in np.ndindex(2, 3, 4, 7)]
    right = [(array[b, c, i, j + 1] - array[b, c, i, j]) ** 2 for b, c, i, j in np.ndindex(2, 3, 5, 6)]
    assert total_variation(estimate) == pytest.approx(np.mean(down) + np.mean(right), rel=1e-6)
    one, five = estimate[:1], estimate[:1].expand(5, -1, -1, -1)
    assert total_variation(five) == pytest.approx(total_variation(one), rel=1e-6)
    assert total_variation(torch.full((1, 3, 4, 4), 0.3)) == 0
    with pytest.raises(ValueError, match=r"estimate: shape \(2, 3, 1, 7\)"):
        total_variation(estimate[:, :, :1])


@pytest.mark.parametrize("name", ["perceptual", "lpips", "contextual", "cross_entropy"])
def test_networks_are_frozen_and_not_in_the_state(name: str, heads: Path) -> None:
    losses = {
        "perceptual": lambda: Perceptual(layers=("fire3",), **SQUEEZE),
        "lpips": lambda: LPIPS(heads, "alexnet", weights="random"),
        "contextual": lambda: Contextual(layers=("fire3",), **SQUEEZE),
        "cross_entropy": lambda: CrossEntropy(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))),
    }
    loss = losses[name]()
    parent = nn.ModuleDict({"loss": loss, "model": nn.Conv2d(3, 3, 1)}).train()
    networks = [module for module in loss.modules() if isinstance(module, FrozenWrapper)]
    assert networks and not any(part.training for network in networks for part in network.modules())
    assert not any(p.requires_grad for p in loss.parameters())
    assert set(parent.state_dict()) == {"model.weight", "model.bias"}
    before = copy.deepcopy(list(loss.parameters()))
    parent.load_state_dict(parent.state_dict())  # strict
    assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def test_layers_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="squeezenet1_0.*'fire33'.*'fire3'"):
        Perceptual(layers=("fire3", "fire33"), **SQUEEZE)
    with pytest.raises(ValueError, match="layers: .*squeezenet1_0"):
        Perceptual(layers=(), **SQUEEZE)
