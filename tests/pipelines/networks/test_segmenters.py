"""Segmenters by name: their contract, the published scores, and one line on any mistake."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from d2sm.metrics import CLASSES, confusion, miou
from d2sm.models import ESPNet
from pipelines.data.index import TRAIN_IDS
from pipelines.networks import segmenters
from pipelines.networks.segmenters import ABSENT, SegmenterError

WEIGHTS = {
    "espnet-cityscapes": "espnet_p2_q8_cityscapes.pth",
    "espnet-camvid": "espnet_p2_q8_camvid.pth",
}


def scored(model: nn.Module, root: Path, split: str) -> tuple[int, float, float]:
    """Number of images, MIoU and pixel accuracy in percent."""
    total, count = torch.zeros(19, 19, dtype=torch.long), 0
    for path in sorted((root / "gtFine" / split).rglob("*_gtFine_labelIds.png")):
        city = root / "leftImg8bit" / split / path.parent.name
        photo = Image.open(city / path.name.replace("gtFine_labelIds", "leftImg8bit"))
        clean = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            prediction = model(clean).argmax(1)[0]
        total += confusion(prediction, TRAIN_IDS[np.array(Image.open(path))])
        count += 1
    return count, 100 * miou(total), 100 * float(total.diagonal().sum() / total.sum())


def published(shared: Path, name: str) -> nn.Module:
    return segmenters.load(name, weights=shared / "data/weights" / WEIGHTS[name])


@pytest.mark.slow
def test_cityscapes_scores_what_was_published(shared: Path) -> None:
    # Measured with the authors' code: 58.1 / 95.3 on aachen, 66.1 / 96.0 on frankfurt; the task's bar is 1.
    model = published(shared, "espnet-cityscapes")
    for split, count, score, accuracy in (("train", 8, 58.1, 95.3), ("val", 1, 66.1, 96.0)):
        images, found, right = scored(model, shared / "data/cityscapes-mini", split)
        assert images == count
        assert found == pytest.approx(score, abs=1.0)
        assert right == pytest.approx(accuracy, abs=1.0)


@pytest.mark.slow
def test_camvid_scores_what_we_measured(shared: Path) -> None:
    # The published 56.2 is of test images we do not have; on these 51 of the validation split it is 69.3
    # (93.4 of pixels). B and R exchanged in the deviation cost 1.0 point, in the mean 2.7 and more.
    images, found, right = scored(published(shared, "espnet-camvid"), shared / "data/camvid", "val")
    assert images == 51
    assert found == pytest.approx(69.3, abs=0.5)
    assert right == pytest.approx(93.4, abs=0.5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_contract_of_the_published_ones(shared: Path, name: str) -> None:
    model = published(shared, name)
    image = torch.rand(2, 3, 37, 50, requires_grad=True)
    logits = model(image)
    assert logits.shape == (2, 19, 37, 50) and torch.isfinite(logits).all()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    logits.sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_crops_keep_their_scale(shared: Path, name: str) -> None:
    crops = segmenters.load(name, weights=shared / "data/weights" / WEIGHTS[name], resize=False)
    image, seen = torch.rand(1, 3, 40, 56), []
    crops.get_submodule("network").register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape))
    assert crops(image).shape == (1, 19, 40, 56)
    assert seen == [(1, 3, 40, 56)]


def test_camvid_never_predicts_a_class_it_lacks(shared: Path) -> None:
    logits = published(shared, "espnet-camvid")(torch.rand(1, 3, 45, 60))
    absent = [c for c, z in zip(CLASSES, logits[0], strict=True) if bool((z == ABSENT).all())]
    assert absent == ["wall", "traffic light", "terrain", "rider", "truck", "bus", "train", "motorcycle"]


def scenes_file(folder: Path, metadata: dict[str, str] | None) -> tuple[ESPNet, Path]:
    model = ESPNet(classes=19, p=1, q=2).eval()
    save_file(model.state_dict(), folder / "scenes.safetensors", metadata=metadata)
    return model, folder / "scenes.safetensors"


def test_scenes_gives_the_saved_networks_logits(tmp_path: Path) -> None:
    model, path = scenes_file(tmp_path, {"p": "1", "q": "2", "classes": "19"})
    image = torch.rand(1, 3, 40, 56)
    loaded = segmenters.load("espnet-scenes", weights=path)
    torch.testing.assert_close(loaded(image), model(image))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"metadata \{\} needs whole numbers p, q and classes"),
        ({"p": "1", "q": "two", "classes": "19"}, "needs whole numbers"),
        ({"p": "1", "q": "2", "classes": "20"}, "classes=20: needs 19"),
        ({"p": "2", "q": "2", "classes": "19"}, r"another network: it lacks encoder.level2.1"),
        ({"p": "1", "q": "1", "classes": "19"}, r"has the unknown encoder.level3.1"),
    ],
)
def test_scenes_metadata_is_checked(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    _, path = scenes_file(tmp_path, metadata)
    with pytest.raises(SegmenterError, match=message):
        segmenters.load("espnet-scenes", weights=path)


@pytest.mark.parametrize("name", ["espnet-cityscapes", "espnet-camvid", "espnet-scenes"])
def test_weights_are_asked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(SegmenterError, match=f"{name} needs weights"):
        segmenters.load(name)
    with pytest.raises(SegmenterError, match="nowhere.pth"):
        segmenters.load(name, weights=tmp_path / "nowhere.pth")


def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path: Path) -> None:
    def refused(content: object | bytes, suffix: str = "pth") -> str:
        path = tmp_path / f"weights.{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(SegmenterError) as caught:
            segmenters.load("espnet-cityscapes", weights=path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has another shape of" in refused(ESPNet(classes=12).state_dict())
    assert "not a plain state dict" in refused([1, 2])
    assert "cannot be read" in refused(b"not a state dict")
    assert "cannot be read" in refused(b"")
    assert "cannot be read" in refused(b"not safetensors", suffix="safetensors")


def test_pickled_objects_are_not_run(tmp_path: Path) -> None:
    torch.save(ESPNet(classes=20, p=1, q=1), tmp_path / "whole.pth")
    with pytest.raises(SegmenterError, match="whole.pth.*Weights only load failed"):
        segmenters.load("espnet-cityscapes", weights=tmp_path / "whole.pth")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        SegmenterError, match="^segmenter='espnet-citiscapes': .*module:callable or models:/.*espnet-cityscapes"
    ):
        segmenters.load("espnet-citiscapes")


class Constant(nn.Module):
    """A stranger's segmenter: everything is class `bias`'s largest."""

    def __init__(self, channels: int = 19, weights: Path | None = None) -> None:
        super().__init__()
        self.weights = weights
        self.conv = nn.Conv2d(3, channels, 1)
        self.drop = nn.Dropout()

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.drop(self.conv(image))
        return out


class Normalising(Constant):
    """It normalises its images in place."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.sub_(0.5))


class Random(Constant):
    """It drops at random whatever its mode is."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv(image))


class Counting(Constant):
    """It counts its images."""

    count: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__(weights=weights)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        self.count += len(image)
        return super().forward(image)


class Undefined(Constant):
    """It gives NaN, which another check names."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * torch.nan


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("stranger")
    module.__dict__.update(
        good=Constant,
        normalising=Normalising,
        random=Random,
        counting=Counting,
        undefined=Undefined,
        narrow=lambda weights: Constant(7),
        half=lambda weights: nn.Sequential(Constant(), nn.MaxPool2d(2)),
        grey=lambda weights: nn.Conv2d(1, 19, 1),
        words=lambda weights: "a model",
        number=3,
    )
    monkeypatch.setitem(sys.modules, "stranger", module)
    return "stranger"


def test_a_callable_is_called_with_weights_and_frozen(stranger: str) -> None:
    model = segmenters.load(f"{stranger}:good", weights="some/file")
    assert isinstance(model, Constant) and model.weights == Path("some/file")
    assert not model.drop.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("narrow", r"gives \(1, 7, 64, 96\).*needs logits \(1, 19, 64, 96\)"),
        ("half", r"gives \(1, 19, 32, 48\)"),
        ("grey", "fails on an image"),
        ("normalising", "changes its images in place"),
        ("random", "gives two results for one image"),
        ("counting", "changes with every image"),
        ("words", "returned a str"),
        ("number", "is a int"),
        ("nothing", "cannot be imported"),
    ],
)
def test_a_callable_that_breaks_the_contract_is_named(stranger: str, attribute: str, message: str) -> None:
    with pytest.raises(SegmenterError, match=message):
        segmenters.load(f"{stranger}:{attribute}")


def test_nan_is_no_second_result(stranger: str) -> None:
    assert isinstance(segmenters.load(f"{stranger}:undefined"), Undefined)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(SegmenterError, match="No module named 'no_such_module'"):
        segmenters.load("no_such_module:build")


def test_classes_are_those_of_argmax_also_where_scores_are_equal() -> None:
    scores = torch.randint(0, 3, (2, 19, 40, 30)).float()
    assert torch.equal(segmenters.classes(nn.Identity(), scores), scores.argmax(1))
