"""The main job, end to end: train, evaluate, draw, register; each part is also a verb of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines import registry, text, tracking, train
from pipelines.config import Config
from pipelines.evaluate import check as check_evaluation
from pipelines.evaluate import evaluate
from pipelines.inference import pictures
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder, runs_folder
from pipelines.runs.results import RESULTS, Results
from pipelines.tracking import store
from pipelines.training import record, tracked


@dataclass(frozen=True)
class Outcome:
    """What a job leaves behind."""

    trained: train.Trained
    results: Results
    pictures: list[Path]
    record: registry.Record | None
    page: str


def run(config: Config, *, quiet: bool = False, verbose: bool = False, watch: record.Watch | None = None) -> Outcome:
    """Train (or go on), evaluate on the evaluation split, and register under `tracking.register_as` if it is set.

    What the evaluation needs is checked first, so that no training ends without one.
    """
    check_evaluation(config)
    trained = train.fit(config, quiet=quiet, verbose=verbose, watch=watch)
    results = evaluate(trained.checkpoint, trained.config, quiet=quiet, verbose=verbose)
    drawn = pictures.draw(trained.checkpoint, trained.config, trained.folder.pictures)
    record = None
    with tracked.open_run(trained.config, trained.folder) as run:
        keep(run, trained.folder, results, drawn, step=trained.step)
        for name in (checkpoint.MODEL, checkpoint.CONFIG, checkpoint.META):
            run.file(trained.checkpoint / name, "model")
        if trained.config.tracking.register_as:
            record = register(trained.checkpoint, trained.config, results, run)
    return Outcome(trained, results, drawn, record, run.page)


def keep(run: tracking.Run, folder: RunFolder, results: Results, drawn: list[Path], *, step: int) -> None:
    """Put the evaluation of a step's checkpoint into the run's folder and its MLflow record."""
    results.save(folder.results_file)
    folder.write_info(evaluated=step)
    run.results(results.flat())
    run.file(folder.results_file)
    run.text(results.table(), "results.txt")
    for path in drawn:
        run.file(path, "pictures")
    folder.push(folder.results_file, *drawn)


def evaluate_run(
    model: Path, config: Config | None = None, *, out: Path | None = None, quiet: bool = False, verbose: bool = False
) -> tuple[Results, Path]:
    """Evaluate a checkpoint; a run's own folder also gets the numbers into its MLflow record.

    Returns:
        The results and the file they were written to.
    """
    found = checkpoint.resolve(model)
    config = config or configs.load(found / checkpoint.CONFIG)
    results = evaluate(found, config, quiet=quiet, verbose=verbose)
    folder = RunFolder.at(found.parent)
    if out is None and folder.info_file.exists():
        with tracked.open_run(configs.load(folder.config_file), folder) as run:
            keep(run, folder, results, [], step=int(checkpoint.meta(found)["step"]))
        return results, folder.results_file
    out = out or Path(RESULTS)
    results.save(out)
    return results, out


def register(folder: Path, config: Config, results: Results, run: tracking.Run) -> registry.Record:
    """Make a checkpoint a version of the registered model."""
    facts = {
        **results.flat(),
        "data": results.data,
        "convention": results.convention,
        "segmenter": results.segmenter,
        "split": results.split,
    }
    return registry.register(
        folder,
        name=config.tracking.register_as,
        run_id=run.id,
        uri=run.uri,
        alias=config.tracking.alias,
        results=facts,
    )


def resolved(config: Config, *, what: str) -> Config:
    """The same run, told to another process, whose files anybody may read.

    Args:
        what: that writes the configuration down, for the message.

    Raises:
        ConfigError, TrackingError: `train.storage` is a URI; a password in the tracking URI.
    """
    storage = runs_folder(config, what=what)
    uri = store.uri_of(config)
    if text.redact(uri) != uri:
        raise store.TrackingError(
            f"{text.redact(uri)}: {what} writes its tracking URI into files; give the user and the password in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    changes: dict[str, Any] = {"tracking.uri": uri, "train.storage": str(storage)}
    values = config.flat()
    for key in configs.keys_with("place"):
        if key not in changes and values[key] and Path(values[key]).exists():
            changes[key] = str(Path(values[key]).expanduser().absolute())
    return config.replace(changes)
