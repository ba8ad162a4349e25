"""fit: trains what a configuration describes, with Ray Train on the stream of Ray Data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from pipelines import tracking
from pipelines.check import Ready, check
from pipelines.config import Config
from pipelines.data import index, labels, plan
from pipelines.data.splits import spread
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import leaving, resources, session
from pipelines.runtime.progress import Line
from pipelines.text import show
from pipelines.training import initial, interrupt, launch
from pipelines.training.finite import TrainingError
from pipelines.training.messages import QueueReader, Skipped, ValidationSet
from pipelines.training.record import Recorder, Watch, logged_as
from pipelines.training.standing import Standing
from pipelines.training.tracked import Opening, untracked


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        config: the run, its name filled in.
        folder: where it is kept.
        checkpoint: whose weights are the run's model, in that folder: its last one or, with `train.best`, its best one.
        step: of that checkpoint.
        reached: the step at which training ended.
        validated: the numbers of the validation at that step; empty if there was none.
        run_id, uri: the MLflow run, and the store it is in.
        fingerprint: of the training images.
        metrics: the last log entry; empty if nothing was left to train.
        untracked: what MLflow lacks because it did not answer, or refused it, and what to do, on one line; "" if it has
            everything.
        refused: the part of that which is not sent again (see `tracking.Run`).
    """

    config: Config
    folder: RunFolder
    checkpoint: Path
    step: int
    reached: int
    validated: Mapping[str, float]
    run_id: str
    uri: str
    fingerprint: str
    metrics: Mapping[str, float]
    untracked: str = ""
    refused: str = ""

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
    validates: bool = False,
    given: Collection[str] = (),
) -> Trained:
    """Train, or resume the run of this name.

    Args:
        config: the whole run. An empty `train.name` is filled from recipe and time.
        quiet: no progress line.
        verbose: let Ray's own log through.
        watch: called with step and metrics at every log entry.
        ready: what `check.check` gave for this configuration; None: it is checked here.
        validates: validate at the last step also without `train.validate_every`, then on all images of the evaluation.
        given: keys whose values somebody asked for (see `splits.settled`), if it is checked here.

    Raises:
        ConfigError, InUseError, DataError, ResourceError, TrackingError, RemoteError, TrainingError: each one line.
        NotReady: several reasons against the run, before anything was started.
        KeyboardInterrupt: Ctrl-C. After the first there is a checkpoint of the last step.
    """
    ready = ready or check(config, evaluates=validates, given=given)
    config = ready.config
    folder = RunFolder.of(config)
    with folder.owned():
        session.start(cpus=resources.run_cpus(config), verbose=verbose)
        resources.check(config)
        resources.check_process(config)
        if (replaced := folder.open(config, ready.fingerprint)) and not quiet:
            show(f"{config.train.name}: replaces a run of this name without a checkpoint, which had {replaced}")
        initial.prepare(config, folder)
        try:
            with Opening(config, folder) as opening:
                trained = _train(ready, folder, opening, _validation_set(ready, validates), quiet, watch)
            return replace(trained, untracked=untracked(opening.run, folder), refused=opening.run.refused)
        except interrupt.Abandoned:
            if not config.train.local:
                ray.shutdown()  # ends the workers
            elif leaving.active():  # the thread that trains would go on, and start Ray again
                leaving.leave(leaving.INTERRUPTED, leaving.line())
            raise


def _validation_set(ready: Ready, validates: bool) -> ValidationSet | None:
    """What is measured while training; None: nothing."""
    config, subject = ready.config, ready.subject
    every, count = config.train.validate_every, config.train.validate_images
    if subject is None or not (every or validates):
        return None
    rows = spread(subject.items.num_rows, count if every and count else subject.items.num_rows)
    items = subject.items.take(rows)
    about = {
        "images": index.fingerprint(items),
        "levels": list(config.level_names),
        "segmenters": [subject.weights, *(judge.weights for judge in subject.judges.values())],
        "lpips": config.evaluate.lpips,
        "lpips_weights": subject.lpips_weights,
        "labels": labels.of(config).shown if subject.segmenter else "",
    }
    return ValidationSet(items, bool(subject.segmenter), every, about)


def _train(
    ready: Ready,
    folder: RunFolder,
    opening: Opening,
    validation: ValidationSet | None,
    quiet: bool,
    watch: Watch | None,
) -> Trained:
    config, items, fingerprint = ready.config, ready.training, ready.fingerprint
    name, steps = config.train.name, plan.total_steps(config, items.num_rows)
    about = validation.about if validation else {}
    last = folder.latest()
    standing = Standing.at(last, config, about)
    start = checkpoint.step(last) if last else 0
    metrics: Mapping[str, float] = {}
    stopped = False
    if last and checkpoint.is_of(last, name):
        checkpoint.selected_by(last)  # raises if the best checkpoint so far is gone
        for entry in checkpoint.log(last).get("recent", []):  # a driver that was killed may not have recorded them
            opening.run.log(entry["step"], entry["metrics"])
        for entry in standing.recent:
            opening.run.log(entry["step"], logged_as(entry["metrics"]))
    if start < steps and not standing.exhausted:
        with Line(name, steps, start, quiet=quiet) as line:
            recorder = Recorder(config, opening, line, folder, start=start, watch=watch)
            if not start and not quiet and (started_from := initial.note(config, folder)):
                line.say(f"{name}: starts from {started_from}, {initial.ONLY}")
            if start and not quiet:
                line.say(f"{name}: resuming at step {start} of {steps}")
            if not quiet and (oversubscribed := resources.oversubscribed(config)):
                line.say(f"{name}: {oversubscribed}")
            if skipped := index.skipped_images(items):
                recorder(Skipped({image: reason for image, reason in skipped}))
            with QueueReader(recorder, recorder.poll) as reader:
                stopped = launch.run(
                    config, folder, items, steps, fingerprint, reader.queue, line.say, recorder.at_work, validation
                )
            metrics = recorder.metrics
        folder.refresh().prune(config.train.keep)
        if folder.skipped_file.exists():
            folder.push(folder.skipped_file)
    elif not quiet and start >= steps:
        show(f"{name}: already at step {start} of {steps}, nothing to train")
    final = folder.latest()
    if final is None and not stopped:
        raise TrainingError(f"{folder.path}: training ended without a checkpoint")
    if final is None or (stopped and not checkpoint.meta(final).get("final")):
        raise KeyboardInterrupt
    selected, run = checkpoint.selected_by(final), opening.run
    reached, step = checkpoint.step(final), checkpoint.step(selected)
    standing = Standing.at(final, config, about)
    _say_standing(standing, name, reached, steps, folder, run, quiet)
    validated = standing.validated(reached)
    trained = Trained(config, folder, selected, step, reached, validated, run.id, run.uri, fingerprint, metrics)
    run.tag("d2sm.checkpoint", trained.where)
    return trained


def _say_standing(
    standing: Standing, name: str, reached: int, steps: int, folder: RunFolder, run: tracking.Run, quiet: bool
) -> None:
    """Say and record why training stopped early, and which checkpoint is the best one."""
    lines = []
    if standing.exhausted and reached < steps:
        why = standing.why_stopped(reached, steps)
        run.tag("d2sm.stopped_early", why)
        lines.append(f"{why}; train.patience=null, or a larger one, trains on")
    if standing.best is not None:
        folder.write_info(**standing.best.entry())
        run.tag("d2sm.best", str(standing.best))
        lines.append(f"best {standing.best}, of {reached}; that checkpoint is the model")
    for line in [] if quiet else lines:
        show(f"{name}: {line}")
