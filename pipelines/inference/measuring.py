"""What is measured of one photograph: PSNR and SSIM of its noisy and restored versions, and their segmentation.

`Measurer` restores and measures one item at a time, wherever its network is: in the driver process, in an actor, or in
a training worker. `score` makes the numbers of a set of images from what it measured.

On a CPU every version is restored, segmented and measured by itself. On a GPU the levels of a photograph, which
have one size, are one batch, and so are all its versions for a segmenter; PSNR, SSIM and confusion matrices are
computed there, and only they come back. Networks of float32 convolve in float32 there too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from d2sm import metrics
from d2sm.inference import restore
from d2sm.models.base import label_of
from d2sm.objectives.lpips import LPIPS
from d2sm.precision import float32_convolutions
from d2sm.weights import fingerprint
from pipelines.config import Config
from pipelines.data import labels
from pipelines.data.images import ImageError, LabelError
from pipelines.inference import samples
from pipelines.inference.known import Known, digest
from pipelines.inference.samples import Noisy, Sample
from pipelines.inference.tiling import tile_for
from pipelines.networks.segmenters import classes as classes_of
from pipelines.runs.results import EvaluationError, ImageScore, Judged, Score, miou_by
from pipelines.runtime import memory
from pipelines.runtime.threads import torch_threads
from pipelines.text import one_line

SKIPPED = "skipped"
_NAN = float("nan")
_BATCH_PIXELS = 2**24  # of the images that a GPU segments at once: their logits of 19 classes take 1.3 GB


class Measurement(TypedDict):
    """What was measured of one version of one image.

    kind is "clean", "noisy" or "restored"; level is its name in results, "" for clean. psnr and ssim compare it with
    the clean image, and are nan for that itself. confusion holds the counts of `metrics.confusion`, flat; all are 0
    without label or segmenter. tile is the side of the tiles it was restored in, 0 for a whole image. An image that
    cannot be read has one measurement, of the kind `SKIPPED`: why says what is wrong with it. lpips is nan where it is
    not measured. judged holds the confusion matrices by further segmenters. digest is that of `known.digest` for a
    clean or noisy image, whose numbers do not depend on the network; "" where that was not asked for.
    """

    name: str
    kind: str
    level: str
    tile: int
    psnr: float
    ssim: float
    confusion: list[int]
    why: str
    lpips: float
    judged: dict[str, list[int]]
    digest: str


class _Version(NamedTuple):
    """A version of an image to be measured: (1, 3, H, W) in [0, 1] on the device."""

    kind: str
    level: str
    image: Tensor
    tile: int = 0
    digest: str = ""


class Measurer:
    """A network and a segmenter on a device, and what is measured of a photograph with them.

    Args:
        config: its data, noise and evaluate sections say how a photograph is read, degraded and restored.
        network: the denoiser; moved to the device.
        segmenter: likewise; it gives the confusion matrices. None: there are none, and labels are not read.
        device: where images are restored, segmented and measured.
        sharing: number of processes that restore on this machine, or on this GPU, at once (see `tile_for`).
        batched: whether the versions of a photograph are restored and segmented as a batch; None: on a GPU they are.
        judges: further segmenters, by their names in results; only beside the first.
        lpips: measures LPIPS (`LPIPS.distances`); None: it is not measured.
        known: numbers of clean and noisy images that are not measured again; None: neither are digests computed.
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
        judges: Mapping[str, nn.Module] | None = None,
        lpips: LPIPS | None = None,
        known: Mapping[str, Known] | None = None,
    ) -> None:
        self.config, self.device, self.sharing = config, device, sharing
        self.network = network.to(device)
        self.segmenter = segmenter.to(device) if segmenter else None
        self.judges = {name: judge.to(device) for name, judge in (judges or {}).items()}
        self.lpips = lpips.to(device) if lpips else None
        self.known = known
        self.classes = len(labels.of(config).classes)
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
            return Measurement(
                name=item["name"], kind=SKIPPED, level="", tile=0, psnr=_NAN, ssim=_NAN, confusion=[0], why=str(error),
                lpips=_NAN, judged={}, digest="",
            )  # fmt: skip
        if self.known is not None:
            sample = dataclasses.replace(sample, digests=self._digests(sample))
        return _pinned(sample) if self.device.type == "cuda" else sample

    def _digests(self, sample: Sample) -> tuple[str, ...]:
        """Of the clean image, and of the noisy one of every level."""
        noisy = [None, *(each.image for each in sample.noisy)]
        return tuple(digest(sample.clean, image, sample.label) for image in noisy)

    def item(self, item: Mapping[str, Any]) -> list[Measurement]:
        """`load` and `sample` in turn."""
        return self.measure(self.load(item))

    def measure(self, loaded: Sample | Measurement) -> list[Measurement]:
        """The measurements of what `load` gave."""
        return self.sample(loaded) if isinstance(loaded, Sample) else [loaded]

    @float32_convolutions()
    def sample(self, sample: Sample) -> list[Measurement]:
        """Measure the clean image, and for each level the noisy and the restored one.

        Raises:
            EvaluationError: the network fails on it. One line.
        """
        clean = self._here(sample.clean)
        label = None if sample.label is None or self.segmenter is None else self._here(sample.label)
        of_clean, *of_noisy = sample.digests or ("",) * (1 + len(sample.noisy))
        versions = [_Version("clean", "", clean.clamp(0, 1), digest=of_clean)]
        try:
            restored_levels = list(self._restored(sample.noisy))
        except Exception as error:  # somebody else's network may raise anything
            remedy = "give a smaller evaluate.tile" if memory.is_out_of_memory(error) else "correct the network"
            raise EvaluationError(
                f"{sample.name}: {label_of(self.network)} failed on it: {one_line(error)}; {remedy}"
            ) from error
        for (level, noisy, restored, tile), found in zip(restored_levels, of_noisy, strict=True):
            versions.append(_Version("noisy", level, noisy.clamp(0, 1), digest=found))
            versions.append(_Version("restored", level, restored.clamp(0, 1), tile or 0))
        known = self.known or {}
        measured = self._measured([version for version in versions if version.digest not in known], clean, label)
        try:
            return [
                self._measurement(sample.name, version, known.get(version.digest) or next(measured))
                for version in versions
            ]
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            raise EvaluationError(
                f"{sample.name}: too little memory to segment and measure it: {one_line(error)}; free some, or "
                "evaluate smaller photographs, or on the CPU (evaluate.use_gpu=false)"
            ) from error

    def _measurement(self, name: str, version: _Version, numbers: Known) -> Measurement:
        first, *further = numbers.confusions
        return {
            "name": name,
            "kind": version.kind,
            "level": version.level,
            "tile": version.tile,
            "psnr": numbers.psnr,
            "ssim": numbers.ssim,
            "confusion": first,
            "why": "",
            "lpips": numbers.lpips,
            "judged": dict(zip(self.judges, further, strict=True)),
            "digest": version.digest,
        }

    def _measured(self, versions: Sequence[_Version], clean: Tensor, label: Tensor | None) -> Iterator[Known]:
        """The numbers of versions of an image."""
        similarity = metrics.Similarity(clean[0])
        segmenters = [self.segmenter, *self.judges.values()]
        seen = [self._segmented(segmenter, versions, label) for segmenter in segmenters]
        for version, *confusions in zip(versions, *seen, strict=True):
            image, compare = version.image[0], version.kind != "clean"
            with torch.no_grad():
                lpips = float(self.lpips.distances(version.image, clean)) if compare and self.lpips else _NAN
            yield Known(
                psnr=metrics.psnr(image, clean[0]) if compare else _NAN,
                ssim=similarity(image) if compare else _NAN,
                lpips=lpips,
                confusions=confusions,
            )

    def _restored(self, noisy: Sequence[Noisy]) -> Iterator[tuple[str, Tensor, Tensor, int | None]]:
        """Level, noisy and restored image on the device, and the side of the tiles, of every level."""
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

    def _segmented(
        self, segmenter: nn.Module | None, versions: Sequence[_Version], label: Tensor | None
    ) -> list[list[int]]:
        """The confusion matrix of every version by a segmenter, flat."""
        if label is None or segmenter is None:
            return [[0] * self.classes**2] * len(versions)
        count = max(1, _BATCH_PIXELS // label.numel()) if self.batched else 1
        found: list[list[int]] = []
        for start in range(0, len(versions), count):
            images = [version.image for version in versions[start : start + count]]
            for seen in classes_of(segmenter, images[0] if len(images) == 1 else torch.cat(images)):
                found.append(metrics.confusion(seen, label, self.classes).flatten().tolist())
        return found

    def _here(self, tensor: Tensor) -> Tensor:
        """On the device; from pinned memory the host does not wait for the copy."""
        return tensor.to(self.device, non_blocking=True)


def behaviour(name: str, measure: Callable[[Tensor], Tensor], *, threads: int) -> str:
    """16 hex digits over what a network that measures gives for a fixed small image, bit for bit.

    Weights alone do not identify a network: its code, its constants and its preprocessing decide too. The same network
    may give other bits on another machine, or with another version of torch, and is then another one.

    Args:
        name: of the network and its key, for messages.
        measure: image (1, 3, 64, 96) in [0, 1] on the CPU -> the logits of a segmenter, or a distance.
        threads: torch threads.

    Raises:
        EvaluationError: it fails on the image, or its result holds NaN.
    """
    height, width = 64, 96
    ramp = torch.linspace(0, 1, width).expand(height, width)
    colours = torch.stack([ramp, ramp.flip(1), torch.linspace(0, 1, height)[:, None].expand(height, width)])
    noise = torch.randn(colours.shape, generator=torch.Generator().manual_seed(0))
    image = (colours + 0.2 * ramp * noise).clamp(0, 1)[None]  # smooth at the left, noisy at the right
    try:
        with torch.no_grad(), torch_threads(threads):
            found = measure(image)
    except Exception as error:  # somebody else's network may raise anything
        raise EvaluationError(f"{name} fails on an image of {tuple(image.shape)}: {one_line(error)}") from error
    if found.isnan().any():
        raise EvaluationError(f"{name} gives NaN for a small image; correct the network, or its file of weights")
    return fingerprint({"": found})


def undefined(one: Measurement) -> bool:
    """Whether PSNR has no value, since the image holds NaN; it is infinite, which is a value, for equal images."""
    return one["kind"] in ("noisy", "restored") and math.isnan(one["psnr"])


def _pinned(sample: Sample) -> Sample:
    """The sample in memory from which a GPU copies by itself."""
    return dataclasses.replace(
        sample,
        clean=sample.clean.pin_memory(),
        noisy=[each._replace(image=each.image.pin_memory()) for each in sample.noisy],
        label=None if sample.label is None else sample.label.pin_memory(),
    )


def numbers_of(one: Measurement) -> Known:
    """The numbers of a measurement as they are kept, see `known`."""
    return Known(one["psnr"], one["ssim"], one["lpips"], [one["confusion"], *one["judged"].values()])


def confusion_of(found: Sequence[Measurement], judge: str = "") -> Tensor:
    """The confusion matrices of some measurements, summed: int64 (classes, classes).

    Args:
        judge: by which further segmenter; "": by the first.
    """
    counts = torch.tensor(np.sum([one["judged"][judge] if judge else one["confusion"] for one in found], axis=0))
    side = math.isqrt(len(counts))
    return counts.view(side, side)


def score(
    found: Sequence[Measurement],
    kind: str,
    level: str,
    *,
    segmented: bool,
    classes: Sequence[str] = metrics.CLASSES,
) -> Score:
    """The numbers of one kind of images at one level: means over the images; MIoU of their summed confusion matrices.

    Args:
        found: the measurements of a set of images, in an order that does not depend on who measured them: the means
            depend on it in the last bit.
        kind, level: see `Measurement`.
        segmented: whether there were a segmenter and labels.
        classes: names of the classes of the label set.
    """
    of_it = [one for one in found if one["kind"] == kind and one["level"] == level]
    compared = kind != "clean"
    first = _judged(of_it, classes) if segmented else Judged(None, {})
    return Score(
        psnr=float(np.mean([one["psnr"] for one in of_it])) if compared else None,
        ssim=float(np.mean([one["ssim"] for one in of_it])) if compared else None,
        miou=first.miou,
        iou=first.iou,
        lpips=float(np.mean([one["lpips"] for one in of_it])) if compared else None,
        judges={judge: _judged(of_it, classes, judge) for judge in of_it[0]["judged"]} if segmented else {},
    )


def image_score(one: Measurement, *, segmented: bool) -> ImageScore:
    """The numbers of one version of one image.

    Args:
        segmented: whether there were a segmenter and labels.
    """
    judges = one["judged"] if segmented else {}
    confusions = {"miou": confusion_of([one])} if segmented else {}
    confusions |= {miou_by(judge): confusion_of([one], judge) for judge in judges}
    return ImageScore(
        psnr=one["psnr"],
        ssim=one["ssim"],
        miou=metrics.miou(confusions["miou"]) if segmented else None,
        lpips=one["lpips"],
        judges={judge: metrics.miou(confusions[miou_by(judge)]) for judge in judges},
        counts={name: _class_counts(confusion) for name, confusion in confusions.items()},
    )


def _class_counts(confusion: Tensor) -> tuple[tuple[int, int, int], ...]:
    """`metrics.class_counts` by class."""
    return tuple(
        (right, labelled, predicted) for right, labelled, predicted in metrics.class_counts(confusion).T.tolist()
    )


def _judged(found: Sequence[Measurement], classes: Sequence[str], judge: str = "") -> Judged:
    counts = confusion_of(found, judge)
    return Judged(metrics.miou(counts), dict(zip(classes, metrics.iou(counts).tolist(), strict=True)))
