"""fit: from a configuration to a trained run, with Ray Train on the data that Ray Data streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from pipelines import tracking
from pipelines.config import Config
from pipelines.data import index, plan, stream
from pipelines.data.splits import training_images
from pipelines.runs import checkpoint, storage
from pipelines.runs import folder as run_folder
from pipelines.runtime import resources, session
from pipelines.runtime.progress import Line
from pipelines.training import interrupt, launch
from pipelines.training.finite import TrainingError
from pipelines.training.messages import Reader
from pipelines.training.objective import check_objective
from pipelines.training.record import SKIPPED, Record, Watch
from pipelines.training.tracked import open_run


@dataclass(frozen=True)
class Trained:
    """A finished run: where it is, and what it is called in MLflow."""

    config: Config
    run_dir: Path
    checkpoint: Path
    step: int
    run_id: str
    uri: str
    fingerprint: str
    metrics: Mapping[str, float]

    @property
    def where(self) -> str:
        """The checkpoint as others find it: its path, or its URI where `checkpoint` is a copy of it on this disk."""
        uri = storage.uri_of(self.run_dir)
        return storage.joined(uri, self.checkpoint.name) if uri else str(self.checkpoint)


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
    config = run_folder.named(config)
    run_folder.place_of(config)  # a wrong one is said before the images are looked at
    items = training_images(config)
    check_objective(config)
    fingerprint = index.fingerprint(items)
    session.start(cpus=resources.cpus_of(config), verbose=verbose)
    resources.check(config)
    run_dir = run_folder.open_folder(config, fingerprint)
    try:
        with open_run(config, run_dir) as run:
            return _train(config, items, run_dir, fingerprint, run, quiet, watch)
    except interrupt.Left:
        ray.shutdown()  # ends the workers, which nobody waits for any more
        raise


def _train(
    config: Config,
    items: pa.Table,
    run_dir: Path,
    fingerprint: str,
    run: tracking.Run,
    quiet: bool,
    watch: Watch | None,
) -> Trained:
    steps = plan.total_steps(config, items.num_rows)
    last = checkpoint.latest(run_dir)
    start = int(checkpoint.meta(last)["step"]) if last else 0
    seen: dict[str, float] = {}
    ended = False
    if last and checkpoint.is_of(last, config.train.name):
        for entry in checkpoint.log(last).get("recent", []):  # those that a killed driver had not passed on
            run.log(entry["step"], entry["metrics"])
    if start < steps:
        with Line(config.train.name, steps, start, quiet=quiet) as line:
            record = Record(config, run, line, seen, run_dir, start=start, watch=watch)
            if not quiet and (crowded := resources.oversubscribed(config)):
                line.say(f"{config.train.name}: {crowded}")
            if left_out := stream.left_out(items):
                record({"skipped": left_out})
            with Reader(record, record.between) as reader:
                ended = launch.run(config, items, steps, fingerprint, reader.mailbox, line.say)
        storage.refresh(run_dir)
        checkpoint.prune(run_dir, config.train.keep)
        storage.push(run_dir, *(name for name in (SKIPPED,) if (run_dir / name).exists()))
    elif not quiet:
        print(f"{config.train.name}: already at step {start} of {steps}, nothing to train")
    done = checkpoint.latest(run_dir)
    if done is None and not ended:
        raise TrainingError(f"{run_dir}: training ended without a checkpoint")
    if done is None or (ended and not checkpoint.meta(done)["final"]):
        raise KeyboardInterrupt
    trained = Trained(config, run_dir, done, int(checkpoint.meta(done)["step"]), run.id, run.uri, fingerprint, seen)
    run.tag("d2sm.checkpoint", trained.where)
    return trained
