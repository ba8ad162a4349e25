"""Whether the numbers of an evaluation are a run's own, and where they are kept if not.

A run's results.json holds what the table, the figures and the report compare: the numbers of its last step (of its best
one, if `train.best` selects it), on the images, at the levels and with the segmenter of its configuration. An
evaluation that differs in one of these has a folder of its own, in the folder `EVALUATIONS` of the run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.data import index, splits
from pipelines.data.images import DataError, ImageError
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import EvaluationError, Results, level_key

EVALUATIONS = "evaluations"
_NAME = 80  # characters for the levels in the name of a folder
_NAMED_LEVELS = 4  # levels that the name of a folder lists
_NOISE = ("degrade.chain", "noise.sigma", "data.layout", "data.labels")  # keys of training that evaluation reads too


def differences(run: RunFolder, own: Config, config: Config, results: Results, *, step: int) -> list[str]:
    """In what an evaluation differs from the run's own, each in some words for the user; empty: it is the run's own.

    Args:
        own: the run's configuration.
        config: of the evaluation.
        results: its numbers.
        step: of the checkpoint that was evaluated.
    """
    found = []
    selected = run.selected()
    own_step = checkpoint.step(selected) if selected else step
    if step != own_step:
        which = "last" if selected == run.latest() else "best"
        found.append(f"step {step}, the run's {which} is {own_step}")
    mine, asked = own.flat(), config.flat()
    noise = [key for key in _NOISE if mine[key] != asked[key] and (key != "noise.sigma" or own.data.layout == "pairs")]
    for key in [*own.differences(config, "evaluation"), *noise]:
        found.append(f"{key}={_shown(asked[key])}, the run has {_shown(mine[key])}")
    if found:
        return found  # what else differs follows from these
    former = _former(run)
    if not _same_images(run, own, config, results, former):
        why = f"other images than the run's (fingerprint {results.data}"
        found.append(
            f"{why}, in its {run.results_file.name} {former.data})" if former else f"{why}, data.root differs)"
        )
    if not _same_weights(own, config, results, former):
        found.append("other weights of the segmenter than the run's")
    return found


def folder_of(run: RunFolder, config: Config, results: Results, *, step: int) -> RunFolder:
    """The folder of an evaluation that is not the run's own: the same for the same images, levels, segmenter and step.

    On this disk also for a run at a URI; `run.push` sends it there.
    """
    levels = list(results.restored)
    told = list(config.noise.sigma) if config.data.layout == "pairs" else levels  # what the network is told
    what = [results.data, results.split, results.convention, results.segmenter, results.weights, step, told]
    more = [[judge.segmenter, judge.weights] for judge in results.judges.values()]
    if more or results.lpips or results.labels != "cityscapes":  # earlier versions had none of these
        what += [more, results.lpips, results.labels]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
    named = "-".join(map(level_key, levels)).replace("-sigma", "-")  # "sigma25-50"
    if len(levels) > _NAMED_LEVELS or len(named) > _NAME:
        named = f"{'sigma' * named.startswith('sigma')}{len(levels)}levels"
    name = f"{results.split[:40]}-{results.images}images-{named}-{digest}".lstrip(".-")
    return RunFolder(run.path / EVALUATIONS / name)


def free_file(path: Path) -> Path:
    """The path, or the first of NAME-2.json, NAME-3.json, ... that does not exist yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _former(run: RunFolder) -> Results | None:
    """The results that the run has; None: none, or a file that cannot be read, which may be written anew."""
    try:
        return Results.load(run.results_file)
    except EvaluationError:
        return None


def _same_images(run: RunFolder, own: Config, config: Config, results: Results, former: Results | None) -> bool:
    if former is not None:
        return former.data == results.data
    if config.data.root == own.data.root:
        return True
    try:  # the same data set at another place
        return index.fingerprint(splits.training_images(config)) == run.read_info().get("fingerprint")
    except (DataError, ImageError):
        return False


def _same_weights(own: Config, config: Config, results: Results, former: Results | None) -> bool:
    if former is not None and former.weights and results.weights:
        return former.weights == results.weights
    mine, asked = own.evaluate.segmenter_weights, config.evaluate.segmenter_weights
    if mine == asked or not results.segmenter:
        return True
    if mine is None or asked is None:
        return False
    try:
        return Path(mine).read_bytes() == Path(asked).read_bytes()
    except OSError:
        return former is None  # nothing tells, and nothing is replaced


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
