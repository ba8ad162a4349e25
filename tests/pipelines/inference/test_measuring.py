"""What is measured of one photograph, without an evaluation around it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from d2sm import metrics
from d2sm.inference import restore
from d2sm.objectives.lpips import LPIPS
from pipelines.data.images import ImageError
from pipelines.data.splits import evaluation_images
from pipelines.inference import samples
from pipelines.inference.known import Known, KnownFile
from pipelines.inference.measuring import SKIPPED, Measurement, Measurer, _pinned, behaviour, numbers_of, score
from pipelines.networks.models import build
from pipelines.networks.segmenters import Segmenter, fingerprint
from pipelines.runs.results import EvaluationError
from tests.conftest import tiny_config
from tests.helpers.segmenters import by_brightness, by_darkness, segmenter, without_numbers

CPU = torch.device("cpu")
NEEDS_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SEGMENTER = "tests.helpers.segmenters:segmenter"


def test_an_item_and_its_sample_give_the_same_measurements(scenes_root: Path, tmp_path: Path) -> None:
    """Those of a plain loop over the noise levels."""
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25, 50], evaluate__segmenter=SEGMENTER)
    network, judge = build(config.model).eval(), segmenter()
    measurer = Measurer(config, network, judge, device=CPU)
    (item, *_) = evaluation_images(config).to_pylist()
    sample = samples.load(config, item, labels=True)
    found = measurer.sample(sample)
    assert [(one["kind"], one["level"]) for one in found] == [
        ("clean", ""), ("noisy", "25"), ("restored", "25"), ("noisy", "50"), ("restored", "50"),
    ]  # fmt: skip
    assert all(str(one) == str(same) for one, same in zip(found, measurer.item(item), strict=True))  # nan included
    for one, (level, sigma, noisy) in zip(found[2::2], sample.noisy, strict=True):
        image = restore(network, noisy, sigma).clamp(0, 1)
        assert one["psnr"] == metrics.psnr(image[0], sample.clean[0])
        assert one["ssim"] == metrics.ssim(image[0], sample.clean[0])
        with torch.no_grad():
            seen = judge(image).max(1).indices[0]
        assert sample.label is not None
        assert one["confusion"] == metrics.confusion(seen, sample.label).flatten().tolist()
        of_all = score(found, "restored", level, segmented=True)
        assert (of_all.psnr, of_all.ssim) == (one["psnr"], one["ssim"]) and of_all.miou is not None


class Fails(nn.Module):
    """On every photograph, as a network may that takes some sizes alone."""

    blind, label = True, "Mine"

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.factor = error, nn.Parameter(torch.tensor(1.0))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error, line",
    [
        (RuntimeError("no such size\nat 3"), r"Mine failed on it: no such size.* correct the network$"),
        (torch.OutOfMemoryError("tried 9 GiB"), r"Mine failed on it: tried 9 GiB; give a smaller evaluate.tile$"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), r"; give a smaller evaluate.tile$"),
    ],
)
def test_a_network_that_fails_on_a_photograph(error: Exception, line: str, scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path)
    (item, *_) = evaluation_images(config).to_pylist()
    with pytest.raises(EvaluationError, match=line) as caught:
        Measurer(config, Fails(error), None, device=CPU).item(item)
    assert str(caught.value).startswith(f"{item['name']}: ") and "\n" not in str(caught.value)


def test_too_little_memory_to_segment_a_photograph(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, evaluate__segmenter=SEGMENTER)
    (item, *_) = evaluation_images(config).to_pylist()
    network = build(config.model).eval()
    with pytest.raises(
        EvaluationError, match=f"^{item['name']}: too little memory .*evaluate.use_gpu=false.$"
    ) as caught:
        Measurer(config, network, Fails(torch.OutOfMemoryError("tried 9 GiB")), device=CPU).item(item)
    assert "tried 9 GiB" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unreadable_item_is_one_measurement_that_says_why(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path)
    item = {**evaluation_images(config).to_pylist()[0], "image": str(tmp_path / "cut.png")}
    (tmp_path / "cut.png").write_bytes(np.arange(40, dtype=np.uint8).tobytes())
    network = build(config.model).eval()
    with pytest.raises(ImageError, match="cut.png"):
        Measurer(config, network, None, device=CPU).item(item)
    (one,) = Measurer(config.replace({"data.bad_images": "skip"}), network, None, device=CPU).item(item)
    assert one["kind"] == SKIPPED and "cut.png" in one["why"]


class Counting(nn.Module):
    """A segmenter that counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = segmenter(), 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen += len(image)
        logits: torch.Tensor = self.network(image)
        return logits


def test_versions_as_a_batch_are_measured_alike(scenes_root: Path, tmp_path: Path) -> None:
    """As on a GPU: all noise levels restored at once, all versions segmented at once."""
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25, 50], evaluate__segmenter=SEGMENTER)
    (item, *_) = evaluation_images(config).to_pylist()
    network = build(config.model).eval()
    found = [
        Measurer(config, network, segmenter(), device=CPU, batched=batched).item(item) for batched in (False, True)
    ]
    for one, batched in zip(*found, strict=True):
        assert (one["kind"], one["level"]) == (batched["kind"], batched["level"])
        if one["kind"] != "clean":
            assert one["psnr"] == pytest.approx(batched["psnr"], abs=1e-4)
            assert one["ssim"] == pytest.approx(batched["ssim"], abs=1e-5)
        differing = np.abs(np.subtract(one["confusion"], batched["confusion"])).sum()
        assert differing <= 1e-3 * np.sum(one["confusion"])  # pixels between two classes


def test_what_does_not_depend_on_the_network_is_measured_once(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25, 50], evaluate__segmenter=SEGMENTER)
    (item, *_) = evaluation_images(config).to_pylist()
    judges = {"other": Counting()}

    def measured(known: dict[str, Known]) -> list[Measurement]:
        network = build(config.model).eval()
        return Measurer(config, network, Counting(), device=CPU, judges=judges, known=known).item(item)

    first = measured({})
    assert judges["other"].seen == 5
    kept = KnownFile({}, tmp_path / "scores")
    kept.add({one["digest"]: numbers_of(one) for one in first if one["digest"]})
    assert str(measured(kept.load())) == str(first)  # bit for bit, after a file; nan included
    assert judges["other"].seen == 5 + 2  # the two restored images alone
    assert all(set(one["judged"]) == {"other"} and one["judged"]["other"] == one["confusion"] for one in first)


def test_lpips_is_that_of_the_whole_image(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25])
    (item, *_) = evaluation_images(config).to_pylist()
    network, lpips = build(config.model).eval(), LPIPS(trunk="squeezenet1_1", weights="random").eval()
    found = Measurer(config, network, None, device=CPU, lpips=lpips).item(item)
    sample = samples.load(config, item)
    with torch.no_grad():
        wanted = float(lpips(sample.noisy[0].image.clamp(0, 1), sample.clean))
    assert [one["kind"] for one in found] == ["clean", "noisy", "restored"]
    assert np.isnan(found[0]["lpips"]) and found[1]["lpips"] == pytest.approx(wanted, rel=1e-6)
    assert score(found, "noisy", "25", segmented=False).lpips == found[1]["lpips"]


def test_what_a_network_gives_tells_it_from_others_of_the_same_weights() -> None:
    """The constants of the preprocessing are no part of the weights; nor is the code."""

    def made(mean: float = 70.0, std: float = 45.0, size: tuple[int, int] | None = None) -> Segmenter:
        return Segmenter(segmenter(), list(range(19)), (mean, 80.0, 73.0), (std, 46.0, 44.0), size)

    networks = [made(), made(mean=70.5), made(std=45.5), made(size=(32, 48)), by_brightness(None), by_darkness(None)]
    found = [behaviour("evaluate.segmenter=x", network, threads=1) for network in networks]
    assert len(set(found)) == len(found)
    assert behaviour("evaluate.segmenter=y", made(), threads=1) == found[0]
    assert len({fingerprint(network) for network in networks[:4]}) == len({fingerprint(each) for each in networks[4:]})


def test_a_network_that_cannot_measure_is_one_line() -> None:
    with pytest.raises(EvaluationError, match=r"^evaluate.segmenter=x gives NaN [^\n]*file of weights$"):
        behaviour("evaluate.segmenter=x", without_numbers(None), threads=1)
    with pytest.raises(EvaluationError, match=r"^evaluate.segmenter=x fails on an image of \(1, 3, 64, 96\): [^\n]*$"):
        behaviour("evaluate.segmenter=x", nn.Conv2d(4, 19, 3), threads=1)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_A_GPU)])
def test_a_device_measures_what_the_cpu_does(device: str, scenes_root: Path, tmp_path: Path) -> None:
    """As a GPU measures, in batches; the tolerances are those of the README."""
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25, 50], evaluate__segmenter=SEGMENTER)
    found = []
    for where in (CPU, torch.device(device)):
        torch.manual_seed(0)
        network, batched = build(config.model).eval(), bool(found)
        lpips = LPIPS(trunk="squeezenet1_1", weights="random").eval()
        measurer = Measurer(config, network, segmenter(), device=where, batched=batched, lpips=lpips)
        found.append([one for item in evaluation_images(config).to_pylist() for one in measurer.item(item)])
    for wanted, one in zip(*found, strict=True):
        assert (one["name"], one["kind"], one["level"]) == (wanted["name"], wanted["kind"], wanted["level"])
        assert one["psnr"] == pytest.approx(wanted["psnr"], abs=1e-3, nan_ok=True)
        assert one["ssim"] == pytest.approx(wanted["ssim"], abs=1e-4, nan_ok=True)
        assert one["lpips"] == pytest.approx(wanted["lpips"], rel=1e-3, nan_ok=True)
        moved = np.abs(np.subtract(one["confusion"], wanted["confusion"])).sum() / 2  # each leaves a count for another
        assert np.sum(wanted["confusion"]) > 0 and moved < 1e-3 * np.sum(wanted["confusion"])


class Noting(nn.Module):
    """Notes how cuDNN would convolve float32 while the module runs."""

    def __init__(self, network: nn.Module, notes: list[str]) -> None:
        super().__init__()
        self.network, self.notes, self.blind, self.label = network, notes, False, "Noting"

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.notes.append(torch.backends.cudnn.conv.fp32_precision)
        result: torch.Tensor = self.network(*inputs)
        return result


def test_all_networks_convolve_in_float32(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25], evaluate__segmenter=SEGMENTER)
    (item, *_) = evaluation_images(config).to_pylist()
    notes: list[str] = []
    network, judge = (Noting(one, notes) for one in (build(config.model).eval(), segmenter()))
    Measurer(config, network, judge, device=CPU).item(item)
    assert notes == ["ieee"] * 4  # one level restored; the clean, the noisy and the restored image segmented
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_all_tensors_of_a_sample_are_pinned(scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy stands for pinned memory, which only a machine with a GPU has."""
    config = tiny_config(scenes_root, tmp_path, evaluate__sigmas=[25, 50], evaluate__segmenter=SEGMENTER)
    (item, *_) = evaluation_images(config).to_pylist()
    sample = dataclasses.replace(samples.load(config, item, labels=True), digests=("a", "b", "c"))
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    found = _pinned(sample)
    assert found.label is not None and sample.label is not None
    copies = [found.clean, *(each.image for each in found.noisy), found.label]
    assert len(pinned) == 4 and all(copy is one for copy, one in zip(copies, pinned, strict=True))
    for copy, tensor in zip(copies, [sample.clean, *(each.image for each in sample.noisy), sample.label], strict=True):
        assert torch.equal(copy, tensor)
    assert [each[:2] for each in found.noisy] == [("25", 25.0), ("50", 50.0)]
    assert (found.name, found.digests) == (sample.name, sample.digests)
    assert _pinned(dataclasses.replace(sample, label=None)).label is None
