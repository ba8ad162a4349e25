"""What is measured of one photograph: PSNR and SSIM of its noisy and restored versions, and their segmentation.

`Measurer` restores and measures one item at a time, wherever its network is: in the driver process, in an actor, or in
a training worker. `score` makes the numbers of a set of images from what it measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from d2sm import metrics
from d2sm.inference import restore
from pipelines.config import Config
from pipelines.data.images import ImageError, LabelError
from pipelines.inference import samples
from pipelines.inference.samples import Sample
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs.results import Score

SKIPPED = "skipped"


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


class Measurer:
    """A network and a segmenter on a device, and what is measured of a photograph with them.

    Args:
        config: its data, noise and evaluate sections say how a photograph is read, degraded and restored.
        network: the denoiser; moved to the device.
        segmenter: likewise; it gives the confusion matrices. None: there are none, and labels are not read.
        device: where images are restored and segmented.
        sharing: number of processes that restore on this machine, or on this GPU, at once (see `tile_for`).
    """

    def __init__(
        self, config: Config, network: nn.Module, segmenter: nn.Module | None, *, device: torch.device, sharing: int = 1
    ) -> None:
        self.config, self.device, self.sharing = config, device, sharing
        self.network = network.to(device)
        self.segmenter = segmenter.to(device) if segmenter else None

    def item(self, item: Mapping[str, Any]) -> list[Measurement]:
        """Read a row of the index and measure it; one measurement of the kind `SKIPPED` if it cannot be read.

        Raises:
            ImageError: it cannot be read, and `data.bad_images` is "stop"; or its label map cannot.
        """
        try:
            sample = samples.load(self.config, item, labels=self.segmenter is not None)
        except ImageError as error:
            if self.config.data.bad_images == "stop" or isinstance(error, LabelError):
                raise
            nan, why = float("nan"), str(error)
            return [
                Measurement(
                    name=item["name"], kind=SKIPPED, level="", tile=0, psnr=nan, ssim=nan, confusion=[0], why=why
                )
            ]
        return self.sample(sample)

    def sample(self, sample: Sample) -> list[Measurement]:
        """Measure the clean image, and for each noise level the noisy and the restored one."""
        similarity = metrics.Similarity(sample.clean[0])

        def measured(kind: str, level: str, image: Tensor, tile: int | None = None) -> Measurement:
            image, compare = image.clamp(0, 1), kind != "clean"
            confusion = torch.zeros(len(metrics.CLASSES), len(metrics.CLASSES), dtype=torch.int64)
            if sample.label is not None and self.segmenter is not None:
                seen = segmenters.classes(self.segmenter, image.to(self.device))[0].cpu()
                confusion = metrics.confusion(seen, sample.label)
            return {
                "name": sample.name,
                "kind": kind,
                "level": level,
                "tile": tile or 0,
                "psnr": metrics.psnr(image[0], sample.clean[0]) if compare else float("nan"),
                "ssim": similarity(image[0]) if compare else float("nan"),
                "confusion": confusion.flatten().tolist(),
                "why": "",
            }

        found = [measured("clean", "", sample.clean)]
        for level, sigma, noisy in sample.noisy:
            tile = tile_for(self.network, noisy, self.config.evaluate.tile, sharing=self.sharing)
            restored = restore(self.network, noisy.to(self.device), sigma, tile=tile).cpu()
            found.append(measured("noisy", level, noisy))
            found.append(measured("restored", level, restored, tile))
        return found


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
