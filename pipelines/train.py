"""fit: from a configuration to a trained run, with Ray Train on the data that Ray Data streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from pipelines import tracking
from pipelines.config import Config
from pipelines.data import index, plan
from pipelines.data.splits import training_images
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder, named
from pipelines.runtime import resources, session
from pipelines.runtime.progress import Line
from pipelines.training import interrupt, launch
from pipelines.training.finite import TrainingError
from pipelines.training.messages import Reader
from pipelines.training.objective import check_objective
from pipelines.training.record import Record, Watch
from pipelines.training.tracked import open_run


@dataclass(frozen=True)
class Trained:
    """A finished run: where it is, and what it is called in MLflow."""

    config: Config
    folder: RunFolder
    checkpoint: Path
    step: int
    run_id: str
    uri: str
    fingerprint: str
    metrics: Mapping[str, float]

    @property
    def run_dir(self) -> Path:
        """The run's folder on this disk."""
        return self.folder.path

    @property
    def where(self) -> str:
        """The checkpoint as others find it: its path, or its URI where `checkpoint` is a copy of it on this disk."""
        return self.folder.place_of(self.checkpoint.name)


def fit(config: Config, *, quiet: bool = False, verbose: bool = False, watch: Watch | None = None) -> Trained:
    """Train, or go on with the run of this name.

    Args:
        config: the whole run. An empty `train.name` is filled from recipe and time.
        quiet: no progress line.
        verbose: let Ray's own log through.
        watch: is told the step and the metrics at every entry of the log.

    Raises:
        ConfigError, DataError, ResourceError, TrackingError, RemoteError, TrainingError: each one line.
        KeyboardInterrupt: Ctrl-C. After the first there is a checkpoint of the last step.
    """
    config = named(config)
    folder = RunFolder.of(config)  # a wrong one is reported before the photographs are read
    items = training_images(config)
    check_objective(config)
    fingerprint = index.fingerprint(items)
    session.start(cpus=resources.cpus_of(config), verbose=verbose)
    resources.check(config)
    folder.open(config, fingerprint)
    try:
        with open_run(config, folder) as run:
            return _train(config, folder, items, fingerprint, run, quiet, watch)
    except interrupt.Left:
        ray.shutdown()  # ends the workers, which nobody waits for any more
        raise


def _train(
    config: Config,
    folder: RunFolder,
    items: pa.Table,
    fingerprint: str,
    run: tracking.Run,
    quiet: bool,
    watch: Watch | None,
) -> Trained:
    steps = plan.total_steps(config, items.num_rows)
    last = folder.latest()
    start = int(checkpoint.meta(last)["step"]) if last else 0
    seen: dict[str, float] = {}
    ended = False
    if last and checkpoint.is_of(last, config.train.name):
        for entry in checkpoint.log(last).get("recent", []):  # those that a killed driver had not passed on
            run.log(entry["step"], entry["metrics"])
    if start < steps:
        with Line(config.train.name, steps, start, quiet=quiet) as line:
            record = Record(config, run, line, seen, folder, start=start, watch=watch)
            if not quiet and (crowded := resources.oversubscribed(config)):
                line.say(f"{config.train.name}: {crowded}")
            if skipped := index.skipped_images(items):
                record({"skipped": skipped})
            with Reader(record, record.between) as reader:
                ended = launch.run(config, folder, items, steps, fingerprint, reader.mailbox, line.say)
        folder.refresh().prune(config.train.keep)
        if folder.skipped_file.exists():
            folder.push(folder.skipped_file)
    elif not quiet:
        print(f"{config.train.name}: already at step {start} of {steps}, nothing to train")
    done = folder.latest()
    if done is None and not ended:
        raise TrainingError(f"{folder.path}: training ended without a checkpoint")
    if done is None or (ended and not checkpoint.meta(done)["final"]):
        raise KeyboardInterrupt
    trained = Trained(config, folder, done, int(checkpoint.meta(done)["step"]), run.id, run.uri, fingerprint, seen)
    run.tag("d2sm.checkpoint", trained.where)
    return trained
