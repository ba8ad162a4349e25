"""The numbers of an evaluation, as a file and as text; and for every metric, whether larger values are better."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from d2sm.degradations import DEGRADATIONS
from d2sm.objectives import TERMS
from pipelines.runtime import files
from pipelines.text import columns, did_you_mean

_CONVENTION = (
    "RGB in [0, 1]; {noise}, seeded by file name; restored (and noisy, where it is measured) clamped to [0, 1]; "
    "PSNR and SSIM (scikit-image, Gaussian window 11, sigma 1.5, data range 1) per image, then averaged; MIoU from one "
    "confusion matrix over all images, classes present, label 255 ignored"
)
CONVENTION = _CONVENTION.format(noise="Gaussian noise of sigma/255, not clipped")
"""How the numbers are taken. It stands in every results.json: numbers taken differently are not compared."""

RESULTS = "results.json"

_METRICS = ("psnr", "ssim", "miou")
# Metrics that are not measured at a noise level, by name: whether a larger value is the better one.
_LARGER_IS_BETTER = {
    "clean.miou": True,
    "loss": False,
    **{f"loss.{name}": False for term in TERMS.values() for name in (term.name, *term.extra_losses)},
    "gradient_norm": False,
    "discriminator_gradient_norm": False,
    "steps_per_second": True,
    "data_wait": False,
}


def convention(degradation: str) -> str:
    """How numbers are taken of images with this degradation, an entry of `d2sm.degradations`."""
    if degradation == "gaussian":
        return CONVENTION
    return _CONVENTION.format(noise=f"{DEGRADATIONS[degradation].summary} ({degradation}) of level sigma")


class EvaluationError(ValueError):
    """An evaluation that cannot be done as asked, or a file or metric that is none of an evaluation. One line."""


@dataclass(frozen=True)
class Score:
    """The numbers of noisy, restored or clean images at one noise level.

    Attributes:
        psnr, ssim: against the clean images, the mean over all images; None for the clean images themselves.
        miou: of the segmentation, in [0, 1]; None without labels or segmenter.
        iou: the same by class name, of the classes present.
    """

    psnr: float | None
    ssim: float | None
    miou: float | None
    iou: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """All numbers of an evaluation.

    Attributes:
        images: how many were measured.
        split: of the data set.
        data: fingerprint of the images.
        segmenter: that gave the MIoU; "" without MIoU.
        convention: how the numbers were taken, see the function `convention`.
        noisy, restored: by noise level: "25", or "pair" for real pairs.
        clean: the ceiling of MIoU.
    """

    images: int
    split: str
    data: str
    segmenter: str
    convention: str
    noisy: Mapping[str, Score]
    restored: Mapping[str, Score]
    clean: Score

    def flat(self) -> dict[str, float]:
        """What was measured, by its name in MLflow: psnr.sigma25 (restored), noisy.psnr.sigma25, clean.miou."""
        found = {}
        for prefix, by_level in (("", self.restored), ("noisy.", self.noisy)):
            for level, score in by_level.items():
                for name in _METRICS:
                    found[f"{prefix}{name}.sigma{level}"] = getattr(score, name)
        found["clean.miou"] = self.clean.miou
        return {name: value for name, value in found.items() if value is not None}

    def save(self, path: Path) -> None:
        """Write the file that `load` reads back. Raises OSError."""
        files.write_text(path, json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises:
            EvaluationError: the file is missing or holds anything else.
        """
        try:
            tree = json.loads(path.read_text())
            noisy, restored = (
                {level: Score(**score) for level, score in tree[kind].items()} for kind in ("noisy", "restored")
            )
            return cls(**{**tree, "noisy": noisy, "restored": restored, "clean": Score(**tree["clean"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise EvaluationError(f"{path}: cannot be read as results; `d2sm evaluate` writes them again") from None

    def line(self) -> str:
        """PSNR / SSIM / MIoU of the restored images by noise level, on one line."""
        return ", ".join(f"sigma {level} {_cell(score)}" for level, score in self.restored.items())

    def table(self, title: str = "restored") -> str:
        """The numbers as text: a row each for noisy, restored and clean images, a column for each noise level.

        Args:
            title: of the row of the restored images.
        """
        levels = list(self.restored)
        rows = [["PSNR dB / SSIM / MIoU", *(f"sigma {level}" for level in levels)]]
        for name, by_level in (("noisy", self.noisy), (title, self.restored)):
            rows.append([name, *(_cell(by_level[level]) for level in levels)])
        rows.append(["clean (ceiling)", *([f"- / - / {_number(self.clean.miou, 3)}"] * len(levels))])
        return columns(rows, ruled=True)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one.

    Args:
        metric: as it is logged: "psnr.sigma25", "noisy.ssim.sigma50", "miou.sigmapair", "clean.miou", "loss.d2sm",
            "gradient_norm", "distance.L1" or "kl.L1" (of the t-SNE figure), ...; "best." may stand before it.

    Raises:
        EvaluationError: no such metric is logged, or none of its values is better ("lr").
    """
    name = metric.removeprefix("best.")
    if name in _LARGER_IS_BETTER:
        return _LARGER_IS_BETTER[name]
    if re.fullmatch(r"(noisy\.)?(psnr|ssim|miou)\.sigma(pair|\d+(\.\d+)?)", name):
        return True
    if re.fullmatch(r"(distance|kl)\..+", name):
        return False
    if name == "lr":
        raise EvaluationError("metric lr: the learning rate is set, not measured, so no value of it is better")
    near = did_you_mean(metric, [*_LARGER_IS_BETTER, "psnr.sigma25", "ssim.sigma25", "miou.sigma25"])
    raise EvaluationError(
        f"metric {metric}: neither logged in training nor measured by evaluation, as loss.l1 or psnr.sigma25 are{near}"
    )


def _cell(score: Score) -> str:
    return f"{_number(score.psnr, 2)} / {_number(score.ssim, 3)} / {_number(score.miou, 3)}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
