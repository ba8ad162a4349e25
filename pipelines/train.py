"""fit: trains what a configuration describes, with Ray Train on the stream of Ray Data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from pipelines import tracking
from pipelines.check import Ready, check
from pipelines.config import Config
from pipelines.data import index, plan
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import resources, session
from pipelines.runtime.progress import Line
from pipelines.text import show
from pipelines.training import initial, interrupt, launch
from pipelines.training.finite import TrainingError
from pipelines.training.messages import QueueReader, Skipped
from pipelines.training.record import Recorder, Watch
from pipelines.training.tracked import open_run


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        config: the run, its name filled in.
        folder: where it is kept.
        checkpoint: its last checkpoint, in that folder.
        step: of that checkpoint.
        run_id, uri: the MLflow run, and the store it is in.
        fingerprint: of the training images.
        metrics: the last log entry; empty if nothing was left to train.
    """

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
        """The checkpoint's path, or its URI if the run is stored at one and `checkpoint` is a copy on this disk."""
        return self.folder.place_of(self.checkpoint.name)


def fit(
    config: Config,
    *,
    quiet: bool = False,
    verbose: bool = False,
    watch: Watch | None = None,
    ready: Ready | None = None,
) -> Trained:
    """Train, or resume the run of this name.

    Args:
        config: the whole run. An empty `train.name` is filled from recipe and time.
        quiet: no progress line.
        verbose: let Ray's own log through.
        watch: called with step and metrics at every log entry.
        ready: what `check.check` gave for this configuration; None: it is checked here.

    Raises:
        ConfigError, InUseError, DataError, ResourceError, TrackingError, RemoteError, TrainingError: each one line.
        NotReady: several reasons against the run, before anything was started.
        KeyboardInterrupt: Ctrl-C. After the first there is a checkpoint of the last step.
    """
    ready = ready or check(config, evaluates=False)
    config, items, fingerprint = ready.config, ready.training, ready.fingerprint
    folder = RunFolder.of(config)
    with folder.owned():
        tracking.preload()  # while Ray's processes start
        session.start(cpus=resources.run_cpus(config), verbose=verbose)
        resources.check(config)
        folder.open(config, fingerprint)
        initial.prepare(config, folder)
        try:
            with open_run(config, folder) as run:
                return _train(config, folder, items, fingerprint, run, quiet, watch)
        except interrupt.Abandoned:
            ray.shutdown()  # ends the workers
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
    name, steps = config.train.name, plan.total_steps(config, items.num_rows)
    last = folder.latest()
    start = checkpoint.step(last) if last else 0
    metrics: Mapping[str, float] = {}
    stopped = False
    if last and checkpoint.is_of(last, name):
        for entry in checkpoint.log(last).get("recent", []):  # a driver that was killed may not have recorded them
            run.log(entry["step"], entry["metrics"])
    if start < steps:
        with Line(name, steps, start, quiet=quiet) as line:
            recorder = Recorder(config, run, line, folder, start=start, watch=watch)
            if not start and not quiet and (started_from := initial.note(folder.read_info())):
                line.say(f"{name}: starts from {started_from}, {initial.ONLY}")
            if start and not quiet:
                line.say(f"{name}: resuming at step {start} of {steps}")
            if not quiet and (oversubscribed := resources.oversubscribed(config)):
                line.say(f"{name}: {oversubscribed}")
            if skipped := index.skipped_images(items):
                recorder(Skipped({image: reason for image, reason in skipped}))
            with QueueReader(recorder, recorder.poll) as reader:
                stopped = launch.run(
                    config, folder, items, steps, fingerprint, reader.queue, line.say, recorder.at_work
                )
            metrics = recorder.metrics
        folder.refresh().prune(config.train.keep)
        if folder.skipped_file.exists():
            folder.push(folder.skipped_file)
    elif not quiet:
        show(f"{name}: already at step {start} of {steps}, nothing to train")
    final = folder.latest()
    if final is None and not stopped:
        raise TrainingError(f"{folder.path}: training ended without a checkpoint")
    if final is None or (stopped and not checkpoint.meta(final).get("final")):
        raise KeyboardInterrupt
    step = checkpoint.step(final)
    trained = Trained(config, folder, final, step, run.id, run.uri, fingerprint, metrics)
    run.tag("d2sm.checkpoint", trained.where)
    return trained
