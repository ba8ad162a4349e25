"""fit: from a configuration to a trained run, with Ray Train on the data that Ray Data streams."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray

from d2sm.features import features
from pipelines import (
    checkpoint,
    cityscapes,
    data,
    plan,
    prepared,
    remote,
    run_folder,
    session,
    stopping,
    tracking,
    workers,
)
from pipelines import config as configs
from pipelines.config import Config
from pipelines.objective import Objective
from pipelines.progress import Entry, Line, Reader, Restarts, Waiting
from pipelines.train_loop import TrainingError

SKIPPED = "skipped.json"  # in a run's folder: the images that could not be read, and why
Watch = Callable[[int, Mapping[str, float]], None]


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
        uri = remote.uri_of(self.run_dir)
        return remote.joined(uri, self.checkpoint.name) if uri else str(self.checkpoint)


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
    items = images(config)
    check_objective(config)
    fingerprint = cityscapes.fingerprint(items)
    session.start(cpus=session.cpus_needed(config), verbose=verbose)
    session.check(config)
    run_dir = run_folder.open_folder(config, fingerprint)
    try:
        with open_run(config, run_dir) as run:
            return _train(config, items, run_dir, fingerprint, run, quiet, watch)
    except stopping.Left:
        ray.shutdown()  # ends the workers, which nobody waits for any more
        raise


def images(config: Config) -> pa.Table:
    """The table of images that training reads.

    Raises:
        DataError: when there are none, one is broken, or one holds no crop.
    """
    items = cityscapes.index(
        config.data.root,
        config.data.train_split,
        layout=config.data.layout,
        labels="optional" if config.data.layout == "cityscapes" else None,
        on_bad=config.data.bad_images,
    )
    data.check_sizes(config, items)
    data.check_labels(config, items)
    return items


def check_objective(config: Config) -> None:
    """All weights are at hand, and Phi's stride fits the patches: said before anything is started."""
    if config.loss.weight and config.loss.patch_size:
        stride = features(config.loss.features, weights="random").stride
        if config.loss.patch_size % stride:
            raise configs.ConfigError(
                f"loss.patch_size={config.loss.patch_size}: must be a multiple of {config.loss.features}'s stride, "
                f"{stride}"
            )
    Objective(config.loss)


def open_run(config: Config, run_dir: Path) -> tracking.Run:
    """The run's MLflow record, continued when there is one."""
    known = run_folder.read_run(run_dir)
    tags = {"d2sm.recipe": config.recipe, "d2sm.data": known["fingerprint"], "d2sm.folder": run_folder.place_of(config)}
    if config.tracking.parent:
        tags["mlflow.parentRunId"] = config.tracking.parent
    run = tracking.open_run(config, run_dir=run_dir, tags=tags, run_id=known.get("run_id"))
    run_folder.write_run(run_dir, run_id=run.id, page=run.page)
    return run


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
            record = _Record(config, run, line, seen, run_dir, start=start, watch=watch)
            if not quiet and (crowded := session.crowded(config)):
                line.say(f"{config.train.name}: {crowded}")
            if left_out := data.left_out(items):
                record({"skipped": left_out})
            with Reader(record, record.between) as reader:
                ended = workers.run(config, items, steps, fingerprint, reader.mailbox, line.say)
        remote.refresh(run_dir)
        checkpoint.prune(run_dir, config.train.keep)
        remote.push(run_dir, *(name for name in (SKIPPED,) if (run_dir / name).exists()))
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


def _remedy(config: Config) -> str:
    """What helps when the workers wait for data."""
    more = f"raise train.data_cpus={config.train.data_cpus:g} where there are more CPUs"
    if prepared.is_prepared(Path(config.data.root)):
        return more
    which = "" if config.data.layout == "cityscapes" else f" --layout {config.data.layout}"
    verb = f"d2sm prepare {config.data.root} FOLDER{which}"
    return f"store the photographs decoded (`{verb}`, then data.root=FOLDER), or {more}"


class _Record:
    """Entries of the workers -> the progress line and MLflow."""

    def __init__(
        self,
        config: Config,
        run: tracking.Run,
        line: Line,
        seen: dict[str, float],
        run_dir: Path,
        *,
        start: int,
        watch: Watch | None,
    ) -> None:
        self.config, self.run, self.line, self.seen, self.told = config, run, line, seen, start
        self.watch, self.waiting, self.restarts = watch, Waiting(_remedy(config)), Restarts()
        self.skipped_file = run_dir / SKIPPED
        self.skipped: dict[str, str] = json.loads(self.skipped_file.read_text()) if self.skipped_file.exists() else {}

    def __call__(self, entry: Entry) -> None:
        if "skipped" in entry:
            self._skip(dict(entry["skipped"]))
            return
        if "lost" in entry:
            self._say(self.restarts.breaks(entry["lost"]))
            return
        if "begins" in entry:
            self.waiting.begins()
            self._say(self.restarts.begins(entry["begins"], entry["workers"]))
            return
        metrics = entry["metrics"]
        self.run.log(entry["step"], metrics)
        if entry["step"] <= self.told:  # workers that were started again repeat themselves
            return
        self.told = entry["step"]
        self.seen.clear()
        self.seen.update(metrics)
        if self.watch is not None:
            self.watch(entry["step"], metrics)
        shown = {"loss": metrics["loss"], "d2sm": metrics.get("loss.d2sm"), "wait": metrics["data_wait"]}
        self.line.to(entry["step"], {name: value for name, value in shown.items() if value is not None})
        self._say(self.waiting(entry["step"], metrics))
        if caught_up := self.restarts.reaches(entry["step"], metrics["steps_per_second"]):
            self._say(caught_up)
            self.run.tag("d2sm.restarts", str(self.restarts.count))
            self.run.tag("d2sm.seconds_lost", f"{self.restarts.lost:.0f}")

    def between(self) -> None:
        """Beside the entries: that there are no workers, which would else be a silence of minutes."""
        if text := self.restarts.waits():
            with contextlib.suppress(ray.exceptions.RayError):  # the head is away as well
                text = f"{text}; {session.room(self.config)}"
            self._say(text)

    def _say(self, text: str | None) -> None:
        if text:
            self.line.say(f"{self.line.what}: {text}")

    def _skip(self, files: dict[str, str]) -> None:
        fresh = {file: why for file, why in files.items() if file not in self.skipped}
        self.skipped.update(fresh)
        for why in fresh.values():
            self.line.say(f"skipped: {why}")
        self.skipped_file.write_text(json.dumps(self.skipped, indent=2))
        self.run.file(self.skipped_file)
        self.run.tag("d2sm.skipped_images", str(len(self.skipped)))
