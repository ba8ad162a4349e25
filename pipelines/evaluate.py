"""Evaluate a model: PSNR, SSIM and MIoU of its restored images, beside those of the noisy and of the clean ones.

Actors of Ray read the images of the evaluation split and measure one at a time; with evaluate.actors=0 this process
does it. `check` finds out before a training whether the evaluation after it can be done.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from d2sm.objectives.lpips import LPIPS
from d2sm.weights import fingerprint
from pipelines import registry
from pipelines.config import Config
from pipelines.data import degradation, index
from pipelines.data import labels as label_sets
from pipelines.data.images import DataError, ImageError, LabelError
from pipelines.data.splits import evaluated_part_line, evaluation_images, sampled_labels
from pipelines.inference import pool
from pipelines.inference.known import Known, KnownFile, about
from pipelines.inference.measuring import (
    SKIPPED,
    Measurement,
    Measurer,
    behaviour,
    image_score,
    numbers_of,
    score,
    undefined,
)
from pipelines.networks import segmenters
from pipelines.runs import checkpoint
from pipelines.runs.results import (
    EvaluationError,
    ImageRow,
    ImageScore,
    Judge,
    Results,
    Score,
    convention,
    in_order,
    level_title,
    measured_with,
)
from pipelines.runs.trust import check_config
from pipelines.runtime import resources, session
from pipelines.runtime.progress import Line
from pipelines.text import one_line
from pipelines.tracking.measurer import evaluation_lpips, measurer_of
from pipelines.tracking.segmenter import evaluation_judges, segmenter_store

SMALLEST = 11  # pixels: the side of SSIM's window (d2sm.metrics)
_HIGHEST_BELOW_19 = 5  # the train id of a pole: its label id, 17, is the last below 19


@dataclass(frozen=True)
class Subject:
    """What an evaluation measures, and with what: all that is known before it starts.

    Attributes:
        items: the index of its images.
        skipped: the images left out as unusable (data.bad_images=skip): name -> why.
        data: fingerprint of the images.
        segmenter: its name, "" where no MIoU is measured: without a segmenter, or without labels.
        weights: fingerprint of the segmenter's weights, "" without it.
        notes: what the user should look at, a line each.
        judges: the further segmenters, by their names in results.
        lpips_weights: fingerprint of the weights of LPIPS, "" without it.
        measured_by: what identifies each network that measures: its name, weights and `measuring.behaviour`.
    """

    items: pa.Table
    skipped: Mapping[str, str]
    data: str
    segmenter: str
    weights: str
    notes: tuple[str, ...]
    judges: Mapping[str, Judge] = field(default_factory=dict)
    lpips_weights: str = ""
    measured_by: tuple[str, ...] = ()


def check(config: Config, images: pa.Table | None = None) -> Subject:
    """Check what the evaluation of a configuration needs: its images, labels and segmenter. Starts nothing.

    Args:
        images: what `splits.evaluation_images` gave for this configuration; None: they are looked for here.

    Raises:
        DegradationError: a degradation of the configuration cannot be used.
        DataError: no such split, no images, labels that are missing or no label ids, or an image too small to be
            measured.
        SegmenterError: the segmenter, or its weights, cannot be loaded.
        EvaluationError: no GPU for an evaluation in this process; a segmenter that fails or gives NaN; LPIPS cannot
            be measured.
    """
    degradation.check(config)
    items, skipped = _large_enough(config, evaluation_images(config) if images is None else images)
    judges = evaluation_judges(config)
    lpips = evaluation_lpips(config)
    here = config.evaluate.actors == 0 or (config.evaluate.actors is None and not resources.on_a_cluster())
    if config.evaluate.use_gpu and here and not torch.cuda.is_available():
        raise EvaluationError(
            "evaluate.use_gpu=true: torch finds no GPU here; set evaluate.use_gpu=false, or join a cluster with GPUs "
            "(RAY_ADDRESS) and leave evaluate.actors=null"
        )
    segmented = bool(judges) and items["label"].null_count < items.num_rows
    if not segmented:
        judges = {}
    fingerprints = [segmenters.fingerprint(judge) for judge in judges.values()]
    lpips_weights = fingerprint({**dict(lpips.named_parameters()), **dict(lpips.named_buffers())}) if lpips else ""
    named = zip(list(config.evaluate.judges.items())[1:], fingerprints[1:], strict=True) if segmented else ()
    return Subject(
        items,
        skipped,
        data=index.fingerprint(items),
        segmenter=config.evaluate.segmenter or "" if segmented else "",
        weights=fingerprints[0] if segmented else "",
        notes=_looked_at_labels(config, items) if segmented else (),
        judges={label: Judge(name, weights) for (label, (name, _)), weights in named},
        lpips_weights=lpips_weights,
        measured_by=_measured_by(config, judges, fingerprints, lpips, lpips_weights),
    )


def _measured_by(
    config: Config,
    judges: Mapping[str, nn.Module],
    fingerprints: Sequence[str],
    lpips: LPIPS | None,
    lpips_weights: str,
) -> tuple[str, ...]:
    """See `Subject.measured_by`."""
    found, threads = [], config.evaluate.threads
    for number, ((label, judge), weights) in enumerate(zip(judges.items(), fingerprints, strict=True)):
        name = config.evaluate.judges[label][0]
        key = "segmenters" if number else "segmenter"
        found.append(f"{label} {name} {weights} {behaviour(f'evaluate.{key}={name}', judge, threads=threads)}")
    if lpips:
        trunk = config.evaluate.lpips
        mirrored = behaviour(
            f"evaluate.lpips={trunk}", lambda image: lpips.distances(image, image.flip(3)), threads=threads
        )
        found.append(f"lpips {trunk} {lpips_weights} {mirrored}")
    return tuple(found)


def _large_enough(config: Config, items: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """The images that SSIM can measure, and the unusable ones with the reason; without data.bad_images=skip an error.

    Raises:
        DataError: an image is too small; or no image is left.
    """
    skipped = dict(index.skipped_images(items))
    large = []
    for name, height, width in zip(*(items[column].to_pylist() for column in ("name", "height", "width")), strict=True):
        large.append(min(height, width) >= SMALLEST)
        if large[-1]:
            continue
        skipped[name] = f"{name} has {width}x{height} pixels, and SSIM needs {SMALLEST}x{SMALLEST}"
        if config.data.bad_images == "stop":
            raise DataError(
                f"data.val_split={config.data.val_split}: {skipped[name]}; remove the image from the split, or leave "
                "such images out with data.bad_images=skip"
            )
    if not any(large):
        raise DataError(f"data.val_split={config.data.val_split}: no image is left; {next(iter(skipped.values()))}")
    return items.filter(pa.array(large)), skipped


def _looked_at_labels(config: Config, items: pa.Table) -> tuple[str, ...]:
    """Read some label maps before anything is measured, for what shows in them only; notes for the user.

    Raises:
        DataError: one holds other values than label ids.
    """
    highest = -1
    try:
        for ids in sampled_labels(config, items):
            highest = max([highest, *np.unique(ids[ids != 255]).tolist()])
    except LabelError as error:
        raise DataError(f"{error}; or evaluate without MIoU: evaluate.segmenter=null") from None
    if config.data.labels == label_sets.CITYSCAPES and -1 < highest <= _HIGHEST_BELOW_19:
        return (
            "the labels hold no id above 18 (no sky, no vegetation, no car); if they are train ids instead of label "
            "ids, MIoU is that of other classes",
        )
    return ()


def evaluate(
    model: str | Path,
    config: Config | None = None,
    *,
    subject: Subject | None = None,
    trust: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> Results:
    """Measure a model on the evaluation split.

    Args:
        model: what names a model, see `registry.model_folder`.
        config: data, evaluate and tracking sections to use; None: those the model was trained with.
        subject: what `check` gave for this configuration; None: it is checked here.
        trust: import a segmenter or a backbone that the model's own configuration names as module:callable, even if
            this user did not train the model here.
        quiet: no progress line.
        verbose: show Ray's own log.

    Raises:
        RegistryError, CheckpointError, DataError, SegmenterError, ResourceError, EvaluationError, TrustError: one line
            each.
    """
    folder = registry.model_folder(model, uri=config.tracking.uri if config else None)
    named = config.model.name if config else ""
    network, trained_with = checkpoint.load_model(folder, trust=trust, named=named)  # an actor's node may not see it
    if config is None:
        config = trained_with
        check_config(config, folder, given=None, trust=trust, how="trust=True")
    said: list[str] = []
    if subject is None:
        subject = check(config)
        part = evaluated_part_line(config, subject.items)
        said = [*([part] if part else []), *subject.notes]
    if uri := segmenter_store(config):
        config = config.replace({"tracking.uri": uri})
    config = _with_actors(config, subject.items.num_rows, verbose=verbose)
    found: list[Measurement] = []
    done: set[str] = set()
    announce = config.evaluate.tile == "auto" and not quiet
    kept = KnownFile(_about(config, subject))
    try:
        with Line("evaluate", subject.items.num_rows, quiet=quiet) as line:
            for text in said:
                line.say(text)
            segmented = bool(subject.segmenter)
            for one in measurements(network, config, subject.items, segmented=segmented, known=kept.load()):
                if one["tile"] and announce:
                    announce = False
                    line.say(f"{one['name']}: restored in tiles of {one['tile']} pixels, to fit into the free memory")
                if one["kind"] == SKIPPED:
                    line.say(f"skipped {one['name']}: {one['why']}")
                if undefined(one):
                    raise EvaluationError(_holds_nan(one))
                found.append(one)
                done.add(one["name"])
                line.to(len(done))
    except Exception as error:  # Ray wraps what an actor raised in several layers
        reason = session.cause(error)
        if isinstance(reason, (ValueError, OSError)):
            skip = isinstance(reason, ImageError) and not isinstance(reason, LabelError)
            remedy = "; data.bad_images=skip leaves such images out" if skip else ""
            raise EvaluationError(one_line(reason, 600) + remedy) from error
        raise
    kept.add({one["digest"]: numbers_of(one) for one in found if one["digest"]})
    return _summary(config, found, subject)


def _about(config: Config, subject: Subject) -> dict[str, Any]:
    """What the numbers of clean and noisy images depend on, beside the images; see `known.about`."""
    judges = [*subject.measured_by]
    if subject.segmenter:
        judges.append(label_sets.of(config).fingerprint)
    return about(subject.data, judges, device_of(config), config.evaluate.threads)


def _holds_nan(one: Measurement) -> str:
    """Why an evaluation cannot go on with this image, whose pixels are no numbers."""
    image = f"{one['name']}: the {one['kind']} image at {level_title(one['level'])} holds NaN"
    if one["kind"] == "noisy":
        return f"{image}; correct the degradation (evaluate.levels, degrade.chain)"
    return f"{image}, which the model gave; evaluate another checkpoint, or train with a smaller train.lr"


def _with_actors(config: Config, images: int, *, verbose: bool) -> Config:
    """The configuration with the number of actors that is used; Ray is up if there are any. Raises ResourceError."""
    asked = config.evaluate.actors
    if asked is None and resources.on_a_cluster():
        session.start(cpus=1, verbose=verbose)
    actors = resources.evaluation_actors(config, images)
    if actors:
        session.start(cpus=actors + 1, verbose=verbose)
        resources.check_evaluation(config)
    return config.replace({"evaluate.actors": actors})


def measurements(
    network: nn.Module,
    config: Config,
    items: pa.Table,
    *,
    segmented: bool = True,
    known: Mapping[str, Known] | None = None,
) -> Iterator[Measurement]:
    """Measure every version of every image, image after image, in the order in which they are done.

    Args:
        segmented: False: no image has labels, so the segmenters are not loaded.
        known: numbers of clean and noisy images that are not measured again, see `Measurer`.
    """
    evaluate, rows = config.evaluate, items.to_pylist()
    make = partial(_measurer, network, config, segmented, known)
    if not evaluate.actors:
        found = pool.here(make(), rows, threads=evaluate.threads)
    else:
        found = pool.by_actors(
            make,
            rows,
            actors=evaluate.actors,
            gpus=config.train.gpus_per_worker if evaluate.use_gpu else 0,
            threads=evaluate.threads,
        )
    for of_item in found:
        yield from of_item


def _measurer(network: nn.Module, config: Config, segmented: bool, known: Mapping[str, Known] | None) -> Measurer:
    sharing = resources.sharing(config, max(1, config.evaluate.actors or 0), on_gpus=config.evaluate.use_gpu)
    return measurer_of(config, network, device=device_of(config), segmented=segmented, sharing=sharing, known=known)


def device_of(config: Config) -> torch.device:
    """Where an evaluation restores and measures."""
    return torch.device("cuda" if config.evaluate.use_gpu else "cpu")


def _summary(config: Config, found: Sequence[Measurement], subject: Subject) -> Results:
    """The means over all images, PSNR and SSIM of each image first; MIoU from the summed confusion matrices.

    Raises:
        EvaluationError: no image could be read.
    """
    damaged = {one["name"]: one["why"] for one in found if one["kind"] == SKIPPED}
    found = [one for one in found if one["kind"] != SKIPPED]
    if not found:
        raise EvaluationError(f"none of {subject.items.num_rows} images can be read: {next(iter(damaged.values()))}")
    found = sorted(found, key=lambda one: (one["name"], one["kind"], one["level"]))
    levels = list(dict.fromkeys(one["level"] for one in found if one["kind"] == "restored"))
    levels = in_order(levels, config.level_names)
    segmented, classes = bool(subject.segmenter), label_sets.of(config).classes

    def row(name: str, of_it: Sequence[Measurement]) -> ImageRow:
        scores: dict[str, dict[str, ImageScore]] = {"clean": {}, "noisy": {}, "restored": {}}
        for one in of_it:
            scores[one["kind"]][one["level"]] = image_score(one, segmented=segmented)
        noisy, restored = ({level: scores[kind][level] for level in levels} for kind in ("noisy", "restored"))
        return ImageRow(name, noisy, restored, scores["clean"][""])

    rows = tuple(row(name, list(of_it)) for name, of_it in itertools.groupby(found, key=lambda one: one["name"]))
    return replace(
        without_numbers(config, subject, damaged=damaged),
        images=len(rows),
        noisy={level: score(found, "noisy", level, segmented=segmented, classes=classes) for level in levels},
        restored={level: score(found, "restored", level, segmented=segmented, classes=classes) for level in levels},
        clean=score(found, "clean", "", segmented=segmented, classes=classes),
        skipped={**subject.skipped, **damaged},
        rows=rows,
    )


def without_numbers(config: Config, subject: Subject, *, damaged: Collection[str] = ()) -> Results:
    """The results that an evaluation will give, without numbers: what it measures, and how.

    Args:
        config: of the evaluation.
        subject: what `check` gave for it.
        damaged: names of images that cannot be read, which is not known before (data.bad_images=skip).
    """
    names = subject.items["name"].to_pylist()
    measured = subject.items.filter(pa.array([name not in damaged for name in names], pa.bool_()))
    nothing = Score(None, None, None, {})
    levels = in_order(config.level_names, config.level_names)
    return Results(
        images=measured.num_rows,
        split=config.data.val_split,
        data=subject.data if measured.num_rows == len(names) else index.fingerprint(measured),
        segmenter=subject.segmenter,
        convention=convention(config.levels, pairs=config.data.layout == "pairs"),
        noisy=dict.fromkeys(levels, nothing),
        restored=dict.fromkeys(levels, nothing),
        clean=nothing,
        weights=subject.weights,
        skipped=subject.skipped,
        judges=subject.judges,
        lpips=config.evaluate.lpips or "",
        labels=label_sets.of(config).shown if subject.segmenter else label_sets.CITYSCAPES,
        lpips_weights=subject.lpips_weights,
        measured_with=measured_with(config),
    )
