"""An experiment from end to end: train, evaluate, draw pictures, register the model. Each part is also a verb alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines import registry, tracking, train
from pipelines.check import Ready, check
from pipelines.config import Config
from pipelines.evaluate import evaluate
from pipelines.inference import pictures
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder, runs_folder
from pipelines.runs.results import RESULTS, Results
from pipelines.runtime.progress import stage
from pipelines.text import redact
from pipelines.tracking import store
from pipelines.tracking.segmenter import evaluation_segmenter
from pipelines.training import record, tracked


@dataclass(frozen=True)
class Outcome:
    """What an experiment leaves behind. `record` is the registered version, if any; `page` the run's in MLflow."""

    trained: train.Trained
    results: Results
    pictures: list[Path]
    record: registry.Record | None
    page: str


def run(
    config: Config,
    *,
    quiet: bool = False,
    verbose: bool = False,
    watch: record.Watch | None = None,
    ready: Ready | None = None,
) -> Outcome:
    """Train, or resume the run of this name; then evaluate it, draw pictures, and register it if asked.

    Args:
        config: the whole run. The model is registered under `tracking.register_as` if that is set.
        quiet: no progress line.
        verbose: let Ray's own log through.
        watch: is told the step and the metrics at every entry of the training log.
        ready: what `check.check` gave for this configuration; None: it is checked here.

    Raises:
        InUseError: another process trains or evaluates this run.
        DataError, SegmenterError, RegistryError: something that evaluation or the registry will need is missing or
            wrong; raised before training starts. One line, as whatever `train.fit` and `evaluate.evaluate` raise later.
        NotReady: several reasons against the run, before anything was started.
    """
    ready = ready or check(config)
    with RunFolder.of(ready.config).owned():
        return _run(ready, quiet=quiet, verbose=verbose, watch=watch)


def _run(ready: Ready, *, quiet: bool, verbose: bool, watch: record.Watch | None) -> Outcome:
    trained = train.fit(ready.config, quiet=quiet, verbose=verbose, watch=watch, ready=ready)
    results = evaluate(trained.checkpoint, trained.config, quiet=quiet, verbose=verbose)
    segmenter = evaluation_segmenter(trained.config)
    stage("drawing pictures, and sending results to MLflow")
    drawn = pictures.draw(trained.checkpoint, trained.config, trained.folder.pictures, segmenter)
    with tracked.open_run(trained.config, trained.folder) as mlflow_run:
        save_results(mlflow_run, trained.folder, results, drawn, step=trained.step)
        for name in (checkpoint.MODEL, checkpoint.CONFIG, checkpoint.META):
            mlflow_run.file(trained.checkpoint / name, "model")
        registered = None
        if trained.config.tracking.register_as:
            stage(f"registering the model as {trained.config.tracking.register_as}")
            registered = register(trained.checkpoint, trained.config, results, mlflow_run)
    return Outcome(trained, results, drawn, registered, mlflow_run.page)


def save_results(
    mlflow_run: tracking.Run, folder: RunFolder, results: Results, drawn: Sequence[Path], *, step: int
) -> None:
    """Put the evaluation of a run's checkpoint of this step, and its pictures, into the run's folder and MLflow."""
    results.save(folder.results_file)
    folder.write_info(evaluated=step)
    mlflow_run.results(results.flat())
    mlflow_run.file(folder.results_file)
    mlflow_run.text(results.table(), "results.txt")
    for path in drawn:
        mlflow_run.file(path, "pictures")
    folder.push(folder.results_file, *drawn)


def evaluate_run(
    model: str | Path,
    config: Config | None = None,
    *,
    out: Path | None = None,
    trust: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> tuple[Results, Path]:
    """Evaluate a model. The numbers of a run's checkpoint also go into the run's folder and MLflow record.

    Args:
        model: what names a model, see `registry.model_folder`.
        config: data, evaluate and tracking sections to use; None: those the model was trained with.
        out: the file to write instead; the run's folder and record then stay as they are.
        trust: see `evaluate.evaluate`.
        quiet, verbose: as in `run`.

    Returns:
        The results and the file they were written to.

    Raises:
        InUseError: another process trains or evaluates this run.
    """
    found = registry.model_folder(model, uri=config.tracking.uri if config else None)
    folder = RunFolder.at(found.parent)
    if out is None and folder.info_file.exists():
        with folder.owned("wait until it has ended, or give --out for a file elsewhere"):
            results = evaluate(found, config, trust=trust, quiet=quiet, verbose=verbose)
            with tracked.open_run(configs.load(folder.config_file), folder) as mlflow_run:
                save_results(mlflow_run, folder, results, [], step=checkpoint.step(found))
        return results, folder.results_file
    results = evaluate(found, config, trust=trust, quiet=quiet, verbose=verbose)
    out = out or Path(RESULTS)
    results.save(out)
    return results, out


def register(folder: Path, config: Config, results: Results, mlflow_run: tracking.Run) -> registry.Record:
    """Make a checkpoint a new version of the registered model `tracking.register_as`.

    Args:
        folder: of the checkpoint.
        results: of its evaluation; they become tags of the version.
        mlflow_run: that trained it.
    """
    return registry.register(
        folder,
        name=config.tracking.register_as,
        run_id=mlflow_run.id,
        uri=mlflow_run.uri,
        alias=config.tracking.alias,
        results={
            **results.flat(),
            "data": results.data,
            "convention": results.convention,
            "segmenter": results.segmenter,
            "split": results.split,
        },
    )


def resolved(config: Config, *, what: str) -> Config:
    """The same run for another process: with the tracking URI and with absolute paths instead of defaults.

    Args:
        what: that writes the configuration to files, such as "a sweep", for the message.

    Raises:
        ConfigError, TrackingError: `train.storage` is a URI; a password in the tracking URI.
    """
    runs = runs_folder(config, what=what)
    uri = store.uri_of(config)
    if redact(uri) != uri:
        raise store.TrackingError(
            f"{redact(uri)}: {what} writes its tracking URI into files; give the address of an MLflow server, which "
            "holds the database's password itself"
        )
    changes: dict[str, Any] = {"tracking.uri": uri, "train.storage": str(runs)}
    for key in ("data.root", *configs.WEIGHTS):
        value = config.flat()[key]
        if value and Path(value).exists():
            changes[key] = str(Path(value).expanduser().absolute())
    return config.replace(changes)
