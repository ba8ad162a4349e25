"""What is measured of one photograph: PSNR and SSIM of its noisy and restored versions, and their segmentation.

`Measurer` restores and measures one item at a time, wherever its network is: in the driver process, in an actor, or in
a training worker. `score` makes the numbers of a set of images from what it measured.

On a CPU every version is restored, segmented and measured by itself. On a GPU the noise levels of a photograph, which
have one size, are one batch, and so are all its versions for a segmenter; PSNR, SSIM and confusion matrices are
computed there, and only they come back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from d2sm import metrics
from d2sm.inference import restore
from pipelines.config import Config
from pipelines.data.images import ImageError, LabelError
from pipelines.inference import samples
from pipelines.inference.samples import Noisy, Sample
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs.results import Score

SKIPPED = "skipped"
_BATCH_PIXELS = 2**24  # of the images that a GPU segments at once: their logits of 19 classes take 1.3 GB


class Measurement(TypedDict):
    """What was measured of one version of one image.

    kind is "clean", "noisy" or "restored"; level is the noise level's name, "" for clean. psnr and ssim compare it with
    the clean image, and are nan for that itself. confusion holds the counts of `metrics.confusion`, flat; all are 0
    without label or segmenter. tile is the side of the tiles it was restored in, 0 for a whole image. An image that
    cannot be read has one measurement, of the kind `SKIPPED`: why says what is wrong with it.
    """

    name: str
    kind: str
    level: str
    tile: int
    psnr: float
    ssim: float
    confusion: list[int]
    why: str


class _Version(NamedTuple):
    """A version of an image to be measured: (1, 3, H, W) in [0, 1] on the device."""

    kind: str
    level: str
    image: Tensor
    tile: int = 0


class Measurer:
    """A network and a segmenter on a device, and what is measured of a photograph with them.

    Args:
        config: its data, noise and evaluate sections say how a photograph is read, degraded and restored.
        network: the denoiser; moved to the device.
        segmenter: likewise; it gives the confusion matrices. None: there are none, and labels are not read.
        device: where images are restored, segmented and measured.
        sharing: number of processes that restore on this machine, or on this GPU, at once (see `tile_for`).
        batched: whether the versions of a photograph are restored and segmented as a batch; None: on a GPU they are.
    """

    def __init__(
        self,
        config: Config,
        network: nn.Module,
        segmenter: nn.Module | None,
        *,
        device: torch.device,
        sharing: int = 1,
        batched: bool | None = None,
    ) -> None:
        self.config, self.device, self.sharing = config, device, sharing
        self.network = network.to(device)
        self.segmenter = segmenter.to(device) if segmenter else None
        self.batched = device.type != "cpu" if batched is None else batched

    def load(self, item: Mapping[str, Any]) -> Sample | Measurement:
        """Read a row of the index and degrade it; a measurement of the kind `SKIPPED` if it cannot be read.

        Another thread may do this while `sample` measures. For a GPU the images are in pinned memory.

        Raises:
            ImageError: it cannot be read, and `data.bad_images` is "stop"; or its label map cannot.
        """
        try:
            sample = samples.load(self.config, item, labels=self.segmenter is not None)
        except ImageError as error:
            if self.config.data.bad_images == "stop" or isinstance(error, LabelError):
                raise
            nan, why = float("nan"), str(error)
            return Measurement(
                name=item["name"], kind=SKIPPED, level="", tile=0, psnr=nan, ssim=nan, confusion=[0], why=why
            )
        return _pinned(sample) if self.device.type == "cuda" else sample

    def item(self, item: Mapping[str, Any]) -> list[Measurement]:
        """`load` and `sample` in turn."""
        return self.measure(self.load(item))

    def measure(self, loaded: Sample | Measurement) -> list[Measurement]:
        """The measurements of what `load` gave."""
        return self.sample(loaded) if isinstance(loaded, Sample) else [loaded]

    def sample(self, sample: Sample) -> list[Measurement]:
        """Measure the clean image, and for each noise level the noisy and the restored one."""
        clean = self._here(sample.clean)
        label = None if sample.label is None or self.segmenter is None else self._here(sample.label)
        similarity = metrics.Similarity(clean[0])
        versions = [_Version("clean", "", clean.clamp(0, 1))]
        for level, noisy, restored, tile in self._restored(sample.noisy):
            versions.append(_Version("noisy", level, noisy.clamp(0, 1)))
            versions.append(_Version("restored", level, restored.clamp(0, 1), tile or 0))
        found: list[Measurement] = []
        for version, seen in zip(versions, self._segmented(versions, label), strict=True):
            image, compare = version.image[0], version.kind != "clean"
            found.append(
                {
                    "name": sample.name,
                    "kind": version.kind,
                    "level": version.level,
                    "tile": version.tile,
                    "psnr": metrics.psnr(image, clean[0]) if compare else float("nan"),
                    "ssim": similarity(image) if compare else float("nan"),
                    "confusion": seen,
                    "why": "",
                }
            )
        return found

    def _restored(self, noisy: Sequence[Noisy]) -> Iterator[tuple[str, Tensor, Tensor, int | None]]:
        """Level, noisy and restored image on the device, and the side of the tiles, of every noise level."""
        asked = self.config.evaluate.tile
        images = [self._here(each.image) for each in noisy]
        if self.batched and len(images) > 1:
            batch = torch.cat(images)
            if tile_for(self.network, batch, asked, sharing=self.sharing) is None:
                sigma = torch.tensor([each.sigma for each in noisy], device=self.device)
                restored = restore(self.network, batch, sigma)
                for index, each in enumerate(noisy):
                    yield each.level, images[index], restored[index : index + 1], None
                return
        for each, image in zip(noisy, images, strict=True):
            tile = tile_for(self.network, image, asked, sharing=self.sharing)
            yield each.level, image, restore(self.network, image, each.sigma, tile=tile), tile

    def _segmented(self, versions: Sequence[_Version], label: Tensor | None) -> list[list[int]]:
        """The confusion matrix of every version, flat."""
        classes = len(metrics.CLASSES)
        if label is None or self.segmenter is None:
            return [[0] * classes**2] * len(versions)
        count = max(1, _BATCH_PIXELS // label.numel()) if self.batched else 1
        found: list[list[int]] = []
        for start in range(0, len(versions), count):
            images = [version.image for version in versions[start : start + count]]
            for seen in segmenters.classes(self.segmenter, images[0] if len(images) == 1 else torch.cat(images)):
                found.append(metrics.confusion(seen, label).flatten().tolist())
        return found

    def _here(self, tensor: Tensor) -> Tensor:
        """On the device; from pinned memory the host does not wait for the copy."""
        return tensor.to(self.device, non_blocking=True)


def _pinned(sample: Sample) -> Sample:
    """The sample in memory from which a GPU copies by itself."""
    return dataclasses.replace(
        sample,
        clean=sample.clean.pin_memory(),
        noisy=[each._replace(image=each.image.pin_memory()) for each in sample.noisy],
        label=None if sample.label is None else sample.label.pin_memory(),
    )


def confusion_of(found: Sequence[Measurement]) -> Tensor:
    """The confusion matrices of some measurements, summed: int64 (classes, classes)."""
    counts = np.sum([one["confusion"] for one in found], axis=0)
    return torch.tensor(counts).view(len(metrics.CLASSES), len(metrics.CLASSES))


def score(found: Sequence[Measurement], kind: str, level: str, *, segmented: bool) -> Score:
    """The numbers of one kind of images at one level: means over the images; MIoU of their summed confusion matrices.

    Args:
        found: the measurements of a set of images, in an order that does not depend on who measured them: the means
            depend on it in the last bit.
        kind, level: see `Measurement`.
        segmented: whether there were a segmenter and labels.
    """
    of_it = [one for one in found if one["kind"] == kind and one["level"] == level]
    counts, compared = confusion_of(of_it), kind != "clean"
    iou = dict(zip(metrics.CLASSES, metrics.iou(counts).tolist(), strict=True))
    return Score(
        psnr=float(np.mean([one["psnr"] for one in of_it])) if compared else None,
        ssim=float(np.mean([one["ssim"] for one in of_it])) if compared else None,
        miou=metrics.miou(counts) if segmented else None,
        iou=iou if segmented else {},
    )
