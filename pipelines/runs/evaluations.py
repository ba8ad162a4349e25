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
from pipelines.data.labels import CITYSCAPES
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import (
    CONVENTION,
    CONVENTION_OF_PAIRS,
    EvaluationError,
    Results,
    identity,
    judge_fact,
    judge_weights_fact,
    level_key,
)

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
    return found + [f"{what} than the run's" for what in _other_files(own, config, results, former)]


def folder_of(run: RunFolder, config: Config, results: Results, *, step: int) -> RunFolder:
    """The folder of an evaluation that is not the run's own: the same for the same `identity`, levels and step.

    On this disk also for a run at a URI; `run.push` sends it there.
    """
    levels = list(results.restored)
    told = list(config.noise.sigma) if config.data.layout == "pairs" else levels  # what the network is told
    facts = identity(results)
    if facts["convention"] == CONVENTION_OF_PAIRS:
        facts["convention"] = CONVENTION  # as earlier versions had it, so that their folders are found again
    what: list[Any] = [facts.pop(name) for name in ("data", "split", "convention", "segmenter", "segmenter_weights")]
    what += [step, told]
    labels, lpips = facts.pop("labels") or CITYSCAPES, facts.pop("lpips")
    judges = [[facts.pop(judge_fact(name)), facts.pop(judge_weights_fact(name))] for name in results.judges]
    if judges or lpips or labels != CITYSCAPES:  # earlier versions had none of these
        what += [judges, lpips, labels]
    what += filter(None, facts.values())  # what earlier versions did not know, where it was measured
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
    named = "-".join(map(level_key, levels)).replace("-sigma", "-")  # "sigma25-50"
    if len(levels) > _NAMED_LEVELS or len(named) > _NAME:
        named = f"{'sigma' * named.startswith('sigma')}{len(levels)}levels"
    name = f"{results.split[:40]}-{results.images}images-{named}-{digest}".lstrip(".-")
    return RunFolder(run.path / EVALUATIONS / name)


def claimed_file(path: Path) -> Path:
    """The path, or the first of NAME-2.json, NAME-3.json, ... that does not exist yet: made, empty, for this process.

    Raises:
        OSError: the folder cannot be written to.
    """
    number, free = 1, path
    while True:
        try:
            free.touch(exist_ok=False)
            return free
        except FileExistsError:
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")


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


def _other_files(own: Config, config: Config, results: Results, former: Results | None) -> list[str]:
    """What was measured with files of other contents than the run's, in words. The keys do not tell: they name places.

    The facts of `identity` that the keys decide are not compared: where an edited configuration or another version of
    d2sm changed them, the run's own numbers are to be measured anew.
    """
    words = {"labels": "another label set", "lpips_weights": "other weights of LPIPS"}
    places = {"lpips_weights": (own.evaluate.lpips_weights, config.evaluate.lpips_weights)}
    asked = config.evaluate.judges.values()
    for number, ((name, (_, mine)), (_, given)) in enumerate(zip(own.evaluate.judges.items(), asked, strict=True)):
        fact = judge_weights_fact(name) if number else "segmenter_weights"
        words[fact] = f"other weights of {name}" if number else "other weights of the segmenter"
        places[fact] = (mine, given)
    now, before = identity(results), identity(former) if former else {}
    found = []
    for fact, what in words.items():
        if not now.get(fact):
            continue  # not measured
        if before.get(fact):
            same = before[fact] == now[fact]
        else:
            # Where neither results nor files tell, nothing is replaced unless there is nothing to replace.
            same = _same_file(*places.get(fact, (None, None)), unknown=former is None)
        if not same:
            found.append(what)
    return found


def _same_file(one: str | None, other: str | None, *, unknown: bool) -> bool:
    """Whether two files have the same bytes; `unknown` if one cannot be read."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    try:
        return Path(one).read_bytes() == Path(other).read_bytes()
    except OSError:
        return unknown


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
