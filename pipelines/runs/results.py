"""The numbers of an evaluation, as a file and as text; and for every metric, whether larger values are better."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from d2sm.chain import Chain
from d2sm.objectives import TERMS
from pipelines import parsing
from pipelines.config import PAIR, Config, keys_with
from pipelines.runtime import files
from pipelines.text import columns, counted, did_you_mean, listed

_CONVENTION = (
    "RGB in [0, 1]; {noise}; restored (and noisy, where it is measured) clamped to [0, 1]; "
    "PSNR and SSIM (scikit-image, Gaussian window 11, sigma 1.5, data range 1) per image, then averaged; MIoU from one "
    "confusion matrix over all images, classes present, label 255 ignored"
)
CONVENTION = _CONVENTION.format(noise="Gaussian noise of sigma/255, not clipped, seeded by file name")
"""How the numbers are taken. It stands in every results.json: numbers taken differently are not compared."""
CONVENTION_OF_PAIRS = _CONVENTION.format(noise="photographed noise")
"""Likewise for the images of data.layout=pairs."""

RESULTS = "results.json"
_BYTES = 2**28  # of the largest file that is read: 50,000 images at three noise levels, two segmenters

# The keys whose files an evaluation reads: a path may change, its contents may not.
FILES_READ = (
    "data.root", "evaluate.segmenter_weights", "evaluate.segmenters_weights", "evaluate.lpips_weights",
)  # fmt: skip
_METRICS = ("psnr", "ssim", "miou", "lpips")
_TITLES = {"psnr": "PSNR dB", "ssim": "SSIM", "miou": "MIoU", "lpips": "LPIPS"}
_DIGITS = {"psnr": 2, "ssim": 3, "miou": 3, "lpips": 4}
_SIGMA = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"  # the name of a level of Gaussian noise alone: 25, 12.5
# A level as a part of a metric's name, see `level_key`.
_LEVEL_KEY = rf"sigma(?:{PAIR}|{_SIGMA})|[A-Za-z_]\w*?{_SIGMA}(?:-[A-Za-z_]\w*?{_SIGMA})*"
# Metrics that are not measured at a level, by name: whether a larger value is the better one.
_LARGER_IS_BETTER = {
    "clean.miou": True,
    "loss": False,
    **{f"loss.{name}": False for term in TERMS.values() for name in (term.name, *term.extra_losses)},
    "gradient_norm": False,
    "discriminator_gradient_norm": False,
    "steps_per_second": True,
    "data_wait": False,
}
_WITHOUT_DIRECTION = {
    "lr": "the learning rate is set, not measured",
    "weight_scale": "the factor of the weights follows from loss.gradient_ratio",
}


def convention(levels: Iterable[Chain], *, pairs: bool = False) -> str:
    """How numbers are taken of images that are degraded so.

    Args:
        pairs: the images are photographed pairs, which nothing degrades; `levels` are not used.
    """
    levels = list(levels)
    if pairs:
        return CONVENTION_OF_PAIRS
    if all(chain.is_noise for chain in levels):
        return CONVENTION
    summaries = ", or by ".join(dict.fromkeys(chain.summary for chain in levels))
    return _CONVENTION.format(noise=f"degraded by {summaries}, seeded by file name")


def convention_of(written: str, levels: Iterable[str]) -> str:
    """The convention of numbers at these levels. Earlier versions wrote that of Gaussian noise for pairs too."""
    return CONVENTION_OF_PAIRS if written == CONVENTION and set(levels) == {PAIR} else written


def level_key(level: str) -> str:
    """A level as names of metrics, files and folders have it: "sigma25", "sigmapair", "jpeg10", "blur2-noise10".

    Args:
        level: its name in results: "25", "pair", "jpeg10", "blur2+noise10".
    """
    # MLflow takes no "+" in the name of a metric.
    return f"sigma{level}" if is_noise(level) else level.replace("+", "-")


def metric_name(metric: str, level: str) -> str:
    """The name of a metric at a level, in MLflow, tables and sweeps: "psnr.sigma25", "psnr.blur2-noise10"."""
    return f"{metric}.{level_key(level)}"


def metric_digits(metric: str) -> int:
    """The digits shown of a metric.

    Args:
        metric: with or without a level: "psnr", "miou-espnet-cityscapes.sigma25".
    """
    return _DIGITS[re.split("[-.]", metric, maxsplit=1)[0]]


def level_title(level: str) -> str:
    """A level as people read it: "sigma 25", "photographed noise", "jpeg10"."""
    if level == PAIR:
        return "photographed noise"
    return f"sigma {level}" if _is_sigma(level) else level


def is_noise(level: str) -> bool:
    """Whether a level is Gaussian noise alone, or photographed noise."""
    return _is_sigma(level) or level == PAIR


def in_order(levels: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Names of levels in the order of results: Gaussian noise by sigma, then the others as they were `wanted`."""
    places = {level: place for place, level in enumerate(wanted)}
    return sorted(
        levels, key=lambda level: (0, float(level)) if _is_sigma(level) else (1, places.get(level, len(places)))
    )


def _is_sigma(level: str) -> bool:
    return re.fullmatch(_SIGMA, level) is not None


class EvaluationError(ValueError):
    """An evaluation that cannot be done as asked, or a file or metric that is none of an evaluation. One line."""


@dataclass(frozen=True)
class Judge:
    """A further segmenter that measured MIoU: its name in the configuration, and the fingerprint of its weights."""

    segmenter: str
    weights: str


@dataclass(frozen=True)
class Judged:
    """The MIoU of one level by a further segmenter, and its IoU by class; as in `Score`."""

    miou: float | None
    iou: Mapping[str, float]

    def __post_init__(self) -> None:
        _drop_infinite(self)


@dataclass(frozen=True)
class ImageScore:
    """The numbers of one version of one image.

    A number that is not finite is None, here and in `Score`: JSON has no other, and neither have tables and MLflow. So
    None means: not measured, or no finite value.

    Attributes:
        psnr, ssim: against the clean image. PSNR is None too where both are identical, such as noise of sigma 0.
        miou: of its segmentation, over the classes in its labels; None without labels or segmenter, or if all is void.
        lpips: against the clean image; None if it was not asked for.
        judges: MIoU by the further segmenters, by their names in results.
        counts: by metric ("miou", "miou-NAME"), of each class of the label set in its order: pixels segmented right,
            labelled, and predicted. MIoU of any set of images is made of their sums. Empty without MIoU, and in files
            of earlier versions.
    """

    psnr: float | None
    ssim: float | None
    miou: float | None
    lpips: float | None = None
    judges: Mapping[str, float | None] = field(default_factory=dict)
    counts: Mapping[str, tuple[tuple[int, int, int], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _drop_infinite(self)


@dataclass(frozen=True)
class ImageRow:
    """All numbers of one image.

    Attributes:
        name: in the evaluation split.
        noisy, restored: by level, as in `Results`.
        clean: its MIoU.
    """

    name: str
    noisy: Mapping[str, ImageScore]
    restored: Mapping[str, ImageScore]
    clean: ImageScore


@dataclass(frozen=True)
class Score:
    """The numbers of noisy, restored or clean images at one level. None as in `ImageScore`.

    Attributes:
        psnr, ssim: against the clean images, the mean over all images; None for the clean images themselves.
        miou: of the segmentation, in [0, 1]; None without labels or segmenter, or if all labels are void.
        iou: the same by class name, of the classes present.
        lpips: against the clean images, the mean over all images; None if it was not asked for.
        judges: the segmentation by the further segmenters, by their names in results.
    """

    psnr: float | None
    ssim: float | None
    miou: float | None
    iou: Mapping[str, float]
    lpips: float | None = None
    judges: Mapping[str, Judged] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _drop_infinite(self)


@dataclass(frozen=True)
class Results:
    """All numbers of an evaluation.

    Attributes:
        images: how many were measured.
        split: of the data set.
        data: fingerprint of the images.
        segmenter: that gave the MIoU; "" without MIoU.
        convention: how the numbers were taken, see the function `convention`.
        noisy, restored: by level: "25", "jpeg10", ..., or "pair" for real pairs.
        clean: the ceiling of MIoU.
        weights: fingerprint of the segmenter's weights; "" without MIoU, and in files of earlier versions.
        skipped: the images left out as unusable (data.bad_images=skip): name -> why.
        rows: of the single images, by name; empty in files of earlier versions.
        judges: the further segmenters that gave an MIoU, by their names in results (see `Evaluate.judges`).
        lpips: the trunk of LPIPS; "" where it was not measured.
        labels: the label set, as `LabelSet.shown` has it; "cityscapes" without MIoU.
        lpips_weights: fingerprint of its trunk and heads; "" without LPIPS, and in files of earlier versions.
        measured_with: the keys of the evaluation with their values, see the function `measured_with`; empty in files of
            earlier versions. Results that differ in nothing else are equal.
    """

    images: int
    split: str
    data: str
    segmenter: str
    convention: str
    noisy: Mapping[str, Score]
    restored: Mapping[str, Score]
    clean: Score
    weights: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[ImageRow, ...] = ()
    judges: Mapping[str, Judge] = field(default_factory=dict)
    lpips: str = ""
    labels: str = "cityscapes"
    lpips_weights: str = ""
    measured_with: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured at each level, in the order of tables: psnr, ssim, miou, miou-NAME (`judges`), lpips."""
        return _in_order_of_tables(["miou", *map(miou_by, self.judges)], self.lpips)

    @property
    def titles(self) -> tuple[str, ...]:
        """`metrics` as the heads of tables have them: PSNR dB, SSIM, MIoU, MIoU NAME, LPIPS TRUNK."""
        by = {"lpips": self.lpips, **{miou_by(judge): judge for judge in self.judges}}
        return tuple(f"{_TITLES[metric.partition('-')[0]]} {by.get(metric, '')}".rstrip() for metric in self.metrics)

    @property
    def measured_on(self) -> str:
        """The photographs and the segmenters: "51 photographs of split val; segmenters: espnet-camvid"."""
        names = filter(None, [self.segmenter, *(judge.segmenter for judge in self.judges.values())])
        photographs = counted(self.images, "photograph")
        return f"{photographs} of split {self.split or 'all'}; segmenters: {', '.join(names) or 'none'}"

    def flat(self) -> dict[str, float]:
        """What was measured, by its name in MLflow: psnr.sigma25 (restored), noisy.psnr.sigma25, clean.miou.

        See `metric_name`.
        """
        found = {}
        for prefix, by_level in (("", self.restored), ("noisy.", self.noisy)):
            for level, score in by_level.items():
                for name, value in _numbers(score).items():
                    found[prefix + metric_name(name, level)] = value
        found |= {f"clean.{name}": value for name, value in _numbers(self.clean).items() if name.startswith("miou")}
        return {name: value for name, value in found.items() if value is not None}

    def save(self, path: Path) -> None:
        """Write the file that `load` reads back: JSON as the standard has it, without NaN. Raises OSError."""
        tree = _without_unused(asdict(self))
        rows = [json.dumps(row, allow_nan=False) for row in tree.pop("rows")]
        text = json.dumps(tree, indent=2, allow_nan=False).removesuffix("\n}")
        files.write_text(path, text + ',\n  "rows": [' + ",".join(f"\n    {row}" for row in rows) + "\n  ]\n}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote, here or in another version: NaN in a file is read as None, unknown keys are left out.

        Raises:
            EvaluationError: the file is missing or holds anything else.
        """
        remedy = "`d2sm evaluate` on the run writes it again"
        found = parsing.read_json(path, cls, error=EvaluationError, remedy=remedy, limit=_BYTES)
        if found.noisy.keys() != found.restored.keys():
            raise EvaluationError(f"{path}: noisy and restored are not of the same levels; {remedy}")
        return replace(found, convention=convention_of(found.convention, found.restored))

    def notes(self) -> list[str]:
        """What a reader of the numbers has to know beside them, a line each: what is missing, and why."""
        found = []
        if self.skipped:
            found.append(f"{len(self.skipped)} skipped (data.bad_images=skip): {listed(self.skipped, 4)}")
        if not self.segmenter:
            found.append("MIoU was not measured: there are no labels, or evaluate.segmenter is not set")
        elif self.clean.miou is None:
            found.append("MIoU has no value: all pixels of the labels are void")
        for kind, by_level in (("noisy", self.noisy), ("restored", self.restored)):
            without = {level: score for level, score in by_level.items() if score.psnr is None}
            # SSIM is 1 where an image equals its clean one. It has no value only where PSNR is NaN too.
            if same := [level for level, score in without.items() if score.ssim is not None]:
                at = ", ".join(map(level_title, same))
                found.append(f"PSNR of the {kind} images is infinite at {at}: an image equals its clean one")
            if undefined := [level for level, score in without.items() if score.ssim is None]:
                at = ", ".join(map(level_title, undefined))
                found.append(f"PSNR and SSIM of the {kind} images have no value at {at}: an image holds NaN")
        return found

    def line(self) -> str:
        """The metrics of the restored images by level, on one line; `titles` says which."""
        return ", ".join(f"{level_title(level)} {self._cell(score)}" for level, score in self.restored.items())

    def table(self, title: str = "restored") -> str:
        """The numbers as text: a row each for noisy, restored and clean images, a column for each level.

        Args:
            title: of the row of the restored images.
        """
        levels = list(self.restored)
        rows = [[" / ".join(self.titles), *map(level_title, levels)]]
        for name, by_level in (("noisy", self.noisy), (title, self.restored)):
            rows.append([name, *(self._cell(by_level[level]) for level in levels)])
        rows.append(["clean (ceiling)", *([self._cell(self.clean)] * len(levels))])
        return columns(rows, ruled=True)

    def _cell(self, score: Score) -> str:
        """The numbers of a score in the order of the table's head."""
        values = _numbers(score)
        return " / ".join(_number(values.get(metric), metric_digits(metric)) for metric in self.metrics)


def measured_with(config: Config) -> dict[str, Any]:
    """The keys that decide what an evaluation measures of a run's model, and with which files, with their values."""
    values = config.flat()
    return {key: values[key] for key in (*keys_with("evaluation"), *FILES_READ)}


def identity(results: Results) -> dict[str, str]:
    """What the numbers depend on, beside the model: fact -> value; "" where it is not known, or nothing was measured.

    Whatever tells evaluations apart asks here: whether one is a run's own, in which folder it is kept, and whether two
    registered versions may be compared (`facts_of`). A fact is the tag of a registered version, where a "." would mark
    a metric.
    """
    facts = {
        "data": results.data,
        "split": results.split,
        "convention": results.convention,
        "segmenter": results.segmenter,
        "segmenter_weights": results.weights,
        "labels": results.labels if results.segmenter else "",
        "lpips": results.lpips,
        "lpips_weights": results.lpips_weights,
    }
    for name, judge in results.judges.items():
        facts |= {judge_fact(name): judge.segmenter, judge_weights_fact(name): judge.weights}
    return facts


def facts_of(metric: str) -> tuple[str, ...]:
    """The facts of `identity` that must agree before two values of a metric may be compared.

    Args:
        metric: as it is logged: "psnr.sigma25", "noisy.miou-NAME.jpeg10", "clean.miou", ...
    """
    name = metric.removeprefix("noisy.").removeprefix("clean.").partition(".")[0]
    measure, _, judge = name.partition("-")
    if judge:
        return ("data", "convention", judge_fact(judge), judge_weights_fact(judge), "labels")
    if measure == "miou":
        return ("data", "convention", "segmenter", "segmenter_weights", "labels")
    return ("data", "convention", *(("lpips", "lpips_weights") if measure == "lpips" else ()))


def judge_fact(name: str) -> str:
    """The fact of `identity` that is a further segmenter, by its name in results."""
    return f"judge-{name}"


def judge_weights_fact(name: str) -> str:
    """The fact of `identity` that is the fingerprint of a further segmenter's weights."""
    return f"judge_weights-{name}"


def _without_unused(tree: Any) -> Any:
    """The tree without further segmenters, LPIPS and counts where there are none, as files have always been."""
    if isinstance(tree, dict):
        unused: dict[str, Any] = (
            {"judges": {}, "lpips": None, "counts": {}}
            if "psnr" in tree
            else {"judges": {}, "lpips": "", "labels": "cityscapes", "lpips_weights": "", "measured_with": {}}
        )
        kept = {key: value for key, value in tree.items() if key not in unused or value != unused[key]}
        return {key: _without_unused(value) for key, value in kept.items()}
    return [_without_unused(each) for each in tree] if isinstance(tree, (list, tuple)) else tree


def _drop_infinite(score: ImageScore | Score | Judged) -> None:
    """Make None of the numbers of a new score that are not finite, and leave out such IoU of classes."""
    for name, value in vars(score).copy().items():
        if name == "iou":
            value = {each: number for each, number in value.items() if math.isfinite(number)}
        elif name == "judges" and isinstance(score, ImageScore):
            value = {judge: _finite(miou) for judge, miou in value.items()}
        elif name in _METRICS:
            value = _finite(value)
        object.__setattr__(score, name, value)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one.

    Args:
        metric: as it is logged: "psnr.sigma25", "noisy.ssim.jpeg10", "miou.sigmapair", "clean.miou", "loss.d2sm",
            "gradient_norm", "distance.L1" or "kl.L1" (of the t-SNE figure), ...; "best." may stand before it.

    Raises:
        EvaluationError: no such metric is logged, or none of its values is better ("lr").
    """
    name = metric.removeprefix("best.")
    if name in _LARGER_IS_BETTER:
        return _LARGER_IS_BETTER[name]
    if re.fullmatch(rf"(noisy\.)?(psnr|ssim|miou(-[\w-]+)?)\.({_LEVEL_KEY})", name):
        return True
    if re.fullmatch(rf"(noisy\.)?lpips\.({_LEVEL_KEY})|(distance|kl)\..+", name):
        return False
    if re.fullmatch(r"clean\.miou-[\w-]+", name):
        return True
    if name in _WITHOUT_DIRECTION:
        raise EvaluationError(f"metric {name}: {_WITHOUT_DIRECTION[name]}, so no value of it is better")
    near = did_you_mean(metric, [*_LARGER_IS_BETTER, "psnr.sigma25", "ssim.sigma25", "miou.sigma25"])
    raise EvaluationError(
        f"metric {metric}: neither logged in training nor measured by evaluation, as loss.l1 or psnr.sigma25 are{near}"
    )


def metric_names(config: Config, *, segmented: bool) -> list[str]:
    """The names of the numbers of restored images that an evaluation of a configuration gives, as they are logged.

    Args:
        segmented: whether MIoU is measured.
    """
    mious = ["miou", *map(miou_by, list(config.evaluate.judges)[1:])] if segmented else []
    metrics = _in_order_of_tables(mious, config.evaluate.lpips)
    return [metric_name(metric, level) for metric in metrics for level in config.level_names]


def _in_order_of_tables(mious: Iterable[str], lpips: str | None) -> tuple[str, ...]:
    return ("psnr", "ssim", *mious, *(["lpips"] if lpips else []))


def miou_by(judge: str) -> str:
    """The metric of a further segmenter: "miou-NAME"."""
    return f"miou-{judge}"


def _numbers(score: Score) -> dict[str, float | None]:
    """All numbers of a score by the names of their metrics; MIoU by a further segmenter is "miou-NAME"."""
    named = {name: getattr(score, name) for name in _METRICS}
    return named | {miou_by(judge): judged.miou for judge, judged in score.judges.items()}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
