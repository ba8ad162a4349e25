"""PSNR, SSIM and MIoU of restored images, between the noisy floor and the clean ceiling, over a pool of actors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor, nn

from d2sm import metrics
from d2sm.inference import restore
from pipelines.config import Config
from pipelines.data import index
from pipelines.data.items import read
from pipelines.data.splits import evaluation_images
from pipelines.inference.samples import noisy_images, tensor
from pipelines.inference.tiling import tile_for
from pipelines.networks import segmenters
from pipelines.runs import checkpoint
from pipelines.runs.results import CONVENTION, EvaluationError, Results, Score
from pipelines.runtime import session
from pipelines.runtime.progress import Line
from pipelines.runtime.threads import torch_threads
from pipelines.text import one_line


def evaluate(model: str | Path, config: Config | None = None, *, quiet: bool = False, verbose: bool = False) -> Results:
    """Measure a model on the evaluation split.

    Args:
        model: a run's folder, one of its checkpoints, or the folder of a registered model.
        config: data and evaluate sections to use; None: those the model was trained with.
        quiet: no progress line.
        verbose: let Ray's own log through.

    Raises:
        CheckpointError, DataError, SegmenterError, EvaluationError: one line each.
    """
    bundle = checkpoint.resolve(model)
    network, trained_with = checkpoint.load_model(bundle)  # here: an actor's node may not see the folder
    config = config or trained_with
    items = evaluation_images(config)
    segmenter = config.evaluate.segmenter
    if segmenter:
        segmenters.load(segmenter, weights=config.evaluate.segmenter_weights)
    if config.evaluate.actors:
        session.start(cpus=config.evaluate.actors + 1, verbose=verbose)
    rows = _rows(network, config, items, quiet)
    labelled = segmenter is not None and items["label"].null_count < items.num_rows
    return _summary(config, rows, items.num_rows, index.fingerprint(items), segmenter if labelled else None)


def _rows(network: nn.Module, config: Config, items: pa.Table, quiet: bool) -> list[dict[str, Any]]:
    """Every image's measurements."""
    rows: list[dict[str, Any]] = []
    done: set[str] = set()
    tell = config.evaluate.tile == "auto" and not quiet
    try:
        with Line("evaluate", items.num_rows, quiet=quiet) as line:
            for row in measurements(network, config, items):
                if row["tile"] and tell:
                    tell = False
                    line.say(f"{row['name']}: restored in tiles of {row['tile']} pixels, as the memory at hand allows")
                rows.append(row)
                done.add(row["name"])
                line.to(len(done))
    except Exception as error:  # Ray wraps what an actor raised in several layers
        reason = session.cause(error)
        if isinstance(reason, (ValueError, OSError)):
            raise EvaluationError(one_line(reason, 600)) from error
        raise
    return sorted(rows, key=lambda row: (row["name"], row["kind"], row["level"]))


def measurements(network: nn.Module, config: Config, items: pa.Table) -> Iterator[dict[str, Any]]:
    """A row for every kind and noise level of an image, image after image, in the order in which they are done."""
    return _stream(network, config, items) if config.evaluate.actors else _here(network, config, items)


def _here(network: nn.Module, config: Config, items: pa.Table) -> Iterator[dict[str, Any]]:
    """In this process."""
    with torch_threads(config.evaluate.threads):
        evaluator = _Evaluator(network, config)
        for row in items.to_pylist():
            columns = evaluator({name: [value] for name, value in row.items()})
            yield from (dict(zip(columns, values)) for values in zip(*columns.values(), strict=True))


def _stream(network: nn.Module, config: Config, items: pa.Table) -> Iterator[dict[str, Any]]:
    """From a pool of actors that read the images themselves."""
    evaluate = config.evaluate
    if ray.cluster_resources().get("CPU", 0) < evaluate.actors:
        raise EvaluationError(f"evaluate.actors={evaluate.actors}: Ray has fewer CPUs; lower it")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else the reason is lost: only its text comes through
    pool = ray.data.from_arrow([items.slice(i, 1) for i in range(items.num_rows)]).map_batches(
        _Evaluator,
        fn_constructor_kwargs={"network": network, "config": config},
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=evaluate.actors),
        num_cpus=1,
        num_gpus=config.train.gpus_per_worker if evaluate.use_gpu else 0,
    )
    yield from pool.iter_rows()


@dataclass(frozen=True)
class _Truth:
    """What the images of one photograph are measured against: clean (1, 3, H, W), label (H, W) train ids."""

    clean: Tensor
    similarity: metrics.Similarity
    label: Tensor | None


class _Evaluator:
    """One actor: the network, the segmenter loaded once, an image at a time."""

    def __init__(self, network: nn.Module, config: Config) -> None:
        torch.set_num_threads(config.evaluate.threads)
        self.device = torch.device("cuda" if config.evaluate.use_gpu else "cpu")
        self.config, self.model = config, network.to(self.device)
        name = config.evaluate.segmenter
        self.segmenter = (
            segmenters.load(name, weights=config.evaluate.segmenter_weights).to(self.device) if name else None
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        item = {column: values[0] for column, values in batch.items()}
        name, photograph = item["name"], read(item, labels=self.segmenter is not None)
        clean = tensor(photograph.clean)
        label = None if photograph.label is None else torch.from_numpy(photograph.label)
        truth = _Truth(clean, metrics.Similarity(clean[0]), label)
        rows = [self._measure(name, "clean", "", clean, truth)]
        for level, sigma, noisy in noisy_images(self.config, name, photograph):
            tile = tile_for(self.model, noisy, self.config.evaluate.tile, sharing=sharing(self.config))
            restored = restore(self.model, noisy.to(self.device), sigma, tile=tile).cpu()
            rows.append(self._measure(name, "noisy", level, noisy, truth))
            rows.append({**self._measure(name, "restored", level, restored, truth), "tile": tile or 0})
        return {key: [row[key] for row in rows] for key in rows[0]}

    def _measure(self, name: str, kind: str, level: str, image: Tensor, truth: _Truth) -> dict[str, Any]:
        image = image.clamp(0, 1)
        compare = kind != "clean"
        confusion = torch.zeros(19, 19, dtype=torch.int64)
        if truth.label is not None and self.segmenter is not None:
            prediction = segmenters.classes(self.segmenter, image.to(self.device))[0].cpu()
            confusion = metrics.confusion(prediction, truth.label)
        return {
            "name": name,
            "kind": kind,
            "level": level,
            "tile": 0,
            "psnr": metrics.psnr(restored=image[0], clean=truth.clean[0]) if compare else float("nan"),
            "ssim": truth.similarity(image[0]) if compare else float("nan"),
            "confusion": confusion.flatten().tolist(),
        }


def sharing(config: Config) -> int:
    """Actors that may restore on one machine, or on one GPU, at once."""
    actors = max(1, config.evaluate.actors)
    return min(actors, int(1 // config.train.gpus_per_worker)) if config.evaluate.use_gpu else actors


def _summary(
    config: Config, rows: Sequence[Mapping[str, Any]], images: int, fingerprint: str, segmenter: str | None
) -> Results:
    levels = list(dict.fromkeys(row["level"] for row in rows if row["kind"] == "restored"))
    levels.sort(key=lambda level: float(level) if level != "pair" else 0)

    def score(kind: str, level: str) -> Score:
        return _score([r for r in rows if r["kind"] == kind and r["level"] == level], segmenter is not None)

    return Results(
        images=images,
        split=config.data.val_split,
        data=fingerprint,
        segmenter=segmenter or "",
        convention=CONVENTION,
        noisy={level: score("noisy", level) for level in levels},
        restored={level: score("restored", level) for level in levels},
        clean=score("clean", ""),
    )


def _score(rows: Sequence[Mapping[str, Any]], segmented: bool) -> Score:
    confusion = torch.tensor(np.sum([row["confusion"] for row in rows], axis=0)).view(19, 19)
    iou = metrics.iou(confusion)
    clean = rows[0]["kind"] == "clean"
    return Score(
        psnr=None if clean else float(np.mean([row["psnr"] for row in rows])),
        ssim=None if clean else float(np.mean([row["ssim"] for row in rows])),
        miou=metrics.miou(confusion) if segmented else None,
        iou={name: float(v) for name, v in zip(metrics.CLASSES, iou, strict=True) if segmented and not v.isnan()},
    )
