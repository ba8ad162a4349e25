"""An experiment from end to end: train, evaluate, register the model, draw pictures. Each part is also a verb alone."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines import registry, tracking, train
from pipelines.check import Ready, check
from pipelines.config import Config
from pipelines.evaluate import evaluate
from pipelines.inference import pictures
from pipelines.runs import checkpoint, evaluations, names
from pipelines.runs.folder import RunFolder, runs_folder
from pipelines.runs.results import RESULTS, Results
from pipelines.runs.trust import check_config
from pipelines.runtime import files
from pipelines.runtime.progress import stage
from pipelines.text import redact
from pipelines.tracking import location, store
from pipelines.tracking.segmenter import evaluation_segmenter
from pipelines.training import initial, record, tracked


@dataclass(frozen=True)
class Outcome:
    """What an experiment leaves behind.

    Attributes:
        record: the registered version, if any.
        page: the run's in MLflow.
        untracked: what MLflow lacks because it did not answer, or refused it, and what to do, on one line; "" if it has
            everything.
    """

    trained: train.Trained
    results: Results
    pictures: list[Path]
    record: registry.Record | None
    page: str
    untracked: str = ""


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_run` leaves behind.

    Attributes:
        path: of the file with the results.
        notes: why that is not the results.json of the run, if so; and what is missing in the numbers. A line each.
        untracked: as in `Outcome`.
    """

    results: Results
    path: Path
    notes: tuple[str, ...]
    untracked: str = ""


def run(
    config: Config,
    *,
    quiet: bool = False,
    verbose: bool = False,
    watch: record.Watch | None = None,
    ready: Ready | None = None,
    given: Collection[str] = (),
) -> Outcome:
    """Train, or resume the run of this name; then evaluate it, register it if asked, and draw pictures.

    Args:
        config: the whole run. The model is registered under `tracking.register_as` if that is set.
        quiet: no progress line.
        verbose: let Ray's own log through.
        watch: is told the step and the metrics at every entry of the training log.
        ready: what `check.check` gave for this configuration; None: it is checked here.
        given: keys whose values somebody asked for (see `splits.settled`), for that check.

    Raises:
        InUseError: another process trains or evaluates this run.
        DataError, SegmenterError, RegistryError: something that evaluation or the registry will need is missing or
            wrong; raised before training starts. One line, as whatever `train.fit` and `evaluate.evaluate` raise later.
        NotReady: several reasons against the run, before anything was started.
    """
    ready = ready or check(config, given=given)
    with RunFolder.of(ready.config).owned():
        return _run(ready, quiet=quiet, verbose=verbose, watch=watch)


def _run(ready: Ready, *, quiet: bool, verbose: bool, watch: record.Watch | None) -> Outcome:
    trained = train.fit(ready.config, quiet=quiet, verbose=verbose, watch=watch, ready=ready)
    results = evaluate(trained.checkpoint, trained.config, subject=ready.subject, quiet=quiet, verbose=verbose)
    trained.folder.write_info(completed=False)
    save_results(trained.folder, results, step=trained.step)  # before anything that may fail
    registered = None
    stage("sending results to MLflow")
    with tracking.reopen(
        trained.run_id, uri=trained.uri, run_dir=trained.folder.path, page=_page(trained.folder), step=trained.step
    ) as mlflow_run:
        send_results(mlflow_run, trained.folder, results)
        for name in (checkpoint.MODEL, checkpoint.CONFIG, checkpoint.META):
            mlflow_run.file(trained.checkpoint / name, "model")
        if trained.config.tracking.register_as and not mlflow_run.away:
            stage(f"registering the model as {trained.config.tracking.register_as}")
            registered = register(trained.checkpoint, trained.config, results, mlflow_run)
        drawn = _draw(trained, mlflow_run)  # last: without pictures, a run is still complete
    trained.folder.write_info(completed=True)
    untracked = tracked.untracked(mlflow_run, trained.folder)
    if untracked and trained.config.tracking.register_as and not registered:
        untracked += f"; it also registers the model as {trained.config.tracking.register_as}"
    untracked = "; ".join(filter(None, (trained.refused, untracked)))
    return Outcome(trained, results, drawn, registered, mlflow_run.page, untracked)


def _draw(trained: train.Trained, mlflow_run: tracking.Run) -> list[Path]:
    """Draw pictures into the folder of a run, and send them to its MLflow run; gives the files."""
    if trained.config.evaluate.pictures:
        stage("drawing pictures")
    segmenter = evaluation_segmenter(trained.config)
    drawn = pictures.draw(trained.checkpoint, trained.config, trained.folder.pictures, segmenter)
    trained.folder.push(*drawn)
    for path in drawn:
        mlflow_run.file(path, "pictures")
    return drawn


def save_results(folder: RunFolder, results: Results, *, step: int) -> None:
    """Put the evaluation of a run's checkpoint of this step into the run's folder."""
    results.save(folder.results_file)
    folder.write_info(evaluated=step)
    folder.push(folder.results_file)


def send_results(mlflow_run: tracking.Run, folder: RunFolder, results: Results) -> None:
    """Send the results in a folder to an MLflow run."""
    mlflow_run.results(results.flat())
    mlflow_run.file(folder.results_file)
    mlflow_run.text(results.table(), "results.txt")


def configuration_of(bundle: Path) -> Config:
    """The configuration with which a checkpoint or registered model is evaluated: its run's, if it lies in one."""
    run = _run_of(bundle)
    return configs.load(run.config_file if run else bundle / checkpoint.CONFIG)


def _run_of(bundle: Path) -> RunFolder | None:
    """The run that a checkpoint belongs to, also if its run.json is lost; None for other folders with a model."""
    run = RunFolder.at(bundle.parent)
    return run if names.is_checkpoint(bundle.name) and run.config_file.exists() else None


def evaluate_run(
    model: str | Path,
    config: Config | None = None,
    *,
    out: Path | None = None,
    trust: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> Evaluated:
    """Evaluate a model. The numbers of a run's model (`checkpoint.selected`) also go into the run's folder and its
    MLflow record.

    Those of other images, levels, another segmenter or checkpoint than the run's own (see `runs.evaluations`) go
    into a folder of their own within the run's, and into an MLflow run of their own below the run's.

    Args:
        model: what names a model, see `registry.model_folder`.
        config: data, evaluate and tracking sections to use; None: those the model was trained with.
        out: the file to write instead, in a folder that is made if need be; the run's folder and record then stay as
            they are.
        trust: see `evaluate.evaluate`.
        quiet, verbose: as in `run`.

    Raises:
        InUseError: another process trains or evaluates this run.
        TrackingError: the MLflow run cannot be found; before anything is measured.
        OSError: `out`, or the current folder where a model without a run is evaluated, cannot be written; before
            anything is measured, too.
    """
    found = registry.model_folder(model, uri=config.tracking.uri if config else None)
    own = configuration_of(found)
    if config is None:
        config = own
        check_config(config, found, given=None, trust=trust, how="trust=True")
    run = _run_of(found)
    if out is not None or run is None:
        path = _ready_file(out) if out is not None else Path(RESULTS)
        if out is None:
            files.ready_folder(Path.cwd(), asked_by=f"{RESULTS} (--out names another file)")
        results = evaluate(found, config, trust=trust, quiet=quiet, verbose=verbose)
        if out is None:
            path = evaluations.claimed_file(path)  # now, since another evaluation may have ended here meanwhile
        results.save(path)
        taken = out is None and path != Path(RESULTS)
        there = (f"{RESULTS} exists here, so the numbers are in {path}",) if taken else ()
        return Evaluated(results, path, there)
    with run.owned("wait until it has ended, or give --out for a file elsewhere"):
        asked = config.tracking.uri if config.tracking.uri != own.tracking.uri else ""
        tracked_in = location.find(run, own, asked=asked)
        if tracked_in.away:
            stage(f"{tracked_in.away}. The numbers will be on disk first")
        results = evaluate(found, config, trust=trust, quiet=quiet, verbose=verbose)
        step = checkpoint.step(found)
        if differs := evaluations.differences(run, own, config, results, step=step):
            aside = evaluations.folder_of(run, config, results, step=step)
            aside.path.mkdir(parents=True, exist_ok=True)
            save_results(aside, results, step=step)
            untracked = _track_aside(run, aside, config, results, uri=tracked_in.uri)
            run.push(aside.path)
            unchanged = f"{run.results_file} and its MLflow run are unchanged"
            why = f"not the run's own numbers ({'; '.join(differs)}), so {unchanged}"
            return Evaluated(results, aside.results_file, (why,), untracked)
        save_results(run, results, step=step)
        return Evaluated(results, run.results_file, (), _track_own(run, own, results, uri=tracked_in.uri, step=step))


def _ready_file(out: Path) -> Path:
    """The file that --out names, in a folder that is there. Raises OSError."""
    path = out.expanduser()
    if os.path.isdir(path):
        raise OSError(f"--out {out}: is a folder; give a file, such as {path / RESULTS}")
    files.ready_folder(path.parent, asked_by=f"--out {out}")
    return path


def _track_own(run: RunFolder, own: Config, results: Results, *, uri: str, step: int) -> str:
    """Add results to the MLflow run of a training, or make it one; gives what is untracked, see `Outcome`."""
    try:
        if run_id := run.read_info().get("run_id"):
            mlflow_run = tracking.reopen(run_id, uri=uri, run_dir=run.path, page=_page(run), step=step)
        else:
            mlflow_run = tracked.open_run(own, run, uri=uri)
        with mlflow_run:
            send_results(mlflow_run, run, results)
        if not mlflow_run.away:
            tracked.note(run, mlflow_run)
        return tracked.untracked(mlflow_run, run)
    except tracking.TrackingError as error:
        return f"not in MLflow: {error}"


def _track_aside(run: RunFolder, aside: RunFolder, config: Config, results: Results, *, uri: str) -> str:
    """Make or continue the MLflow run of an evaluation, below the training's; gives what is untracked."""
    trained = str(run.read_info().get("run_id", ""))
    tags = {
        "d2sm.evaluation_of": trained or run.place,
        "d2sm.folder": run.place_of(str(aside.path.relative_to(run.path))),
    }
    if trained:
        tags["mlflow.parentRunId"] = trained
    try:
        known = aside.read_info().get("run_id")
        if known and not location.holds(store.prepare(uri), known, uri):
            known = None  # deleted; or the training's record has moved to another store
        with tracking.open_run(config, run_dir=aside.path, tags=tags, run_id=known, uri=uri) as mlflow_run:
            tracked.note(aside, mlflow_run)
            send_results(mlflow_run, aside, results)
        return tracked.untracked(mlflow_run, aside)
    except tracking.TrackingError as error:
        return f"not in MLflow: {error}; the same command sends the numbers once it answers"


def _page(folder: RunFolder) -> str:
    return str(folder.read_info().get("page", ""))


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
        results=registry.numbers_of(results),
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
    if config.data.labels.endswith((".yaml", ".yml")):
        changes["data.labels"] = _absolute(config.data.labels)
    for key in ("data.root", *configs.WEIGHTS):
        value = config.flat()[key]
        changes[key] = [_absolute(each) for each in value] if isinstance(value, list) else _absolute(value)
    if config.train.init:
        changes["train.init"] = initial.pinned(config)
    return config.replace(changes)


def _absolute(file: str | None) -> str | None:
    return str(Path(file).expanduser().absolute()) if file and Path(file).exists() else file
