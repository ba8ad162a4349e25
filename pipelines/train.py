"""fit: from a configuration to a trained run, with Ray Train on the data that Ray Data streams."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.train import CheckpointConfig, DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from d2sm.features import features
from pipelines import checkpoint, cityscapes, data, plan, prepared, session, stores, tracking
from pipelines import config as configs
from pipelines.config import Config
from pipelines.objective import Objective
from pipelines.progress import Entry, Line, Reader, Waiting
from pipelines.train_loop import TrainingError, train_loop

RUN = "run.json"  # in a run's folder: its MLflow run and data
# Keys that a resumed run may have changed: none of them alters the weights it ends with, but for a longer schedule.
FREE = (
    "recipe",
    "train.max_steps",
    "train.num_workers",
    "train.use_gpu",
    "train.cpus_per_worker",
    "train.gpus_per_worker",
    "train.threads",
    "train.accumulate",
    "train.recompute",
    "train.compile",
    "train.data_cpus",
    "train.max_failures",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.storage",
    "data.root",
    "data.bad_images",
    "evaluate.",
    "tracking.",
    *configs.WEIGHTS,
)

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


def fit(config: Config, *, quiet: bool = False, verbose: bool = False, watch: Watch | None = None) -> Trained:
    """Train, or go on with the run of this name.

    Args:
        config: the whole run. An empty `train.name` is filled from recipe and time.
        quiet: no progress line.
        verbose: let Ray's own log through.
        watch: is told the step and the metrics at every entry of the log.

    Raises:
        ConfigError, DataError, ResourceError, TrackingError, TrainingError: each one line.
    """
    config = named(config)
    folder_of(config)  # a wrong one is said before the images are looked at
    items = images(config)
    check_objective(config)
    fingerprint = cityscapes.fingerprint(items)
    stores.preload()
    session.start(cpus=session.cpus_needed(config), verbose=verbose)
    session.check(config)
    run_dir = open_folder(config, fingerprint)
    with open_run(config, run_dir) as run:
        return _train(config, items, run_dir, fingerprint, run, quiet, watch)


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


def named(config: Config) -> Config:
    """The configuration with a run name."""
    if config.train.name:
        check_name(config.train.name, "train.name")
        return config
    return config.replace({"train.name": f"{config.recipe or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"})


def check_name(name: str, asked_by: str) -> None:
    """A name becomes a folder, and never one elsewhere.

    Raises:
        ConfigError: it has folders in it, or is hidden.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise configs.ConfigError(f"{asked_by}={name!r}: a plain name, without folders")


def storage_of(config: Config) -> Path:
    """The folder of all runs.

    Raises:
        ConfigError: `train.storage` is a URI.
    """
    if "://" in config.train.storage:
        raise configs.ConfigError(
            f"train.storage={config.train.storage}: training writes to folders only; mount it on every node, and give "
            "that path"
        )
    return Path(config.train.storage).expanduser().absolute()


def folder_of(config: Config) -> Path:
    """Where a run keeps its checkpoints, configuration and results. Raises ConfigError as `storage_of`."""
    return storage_of(config) / config.train.name


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


def open_folder(config: Config, fingerprint: str) -> Path:
    """Make the run's folder, or check that it is this run's: same configuration, same data.

    Raises:
        ConfigError: when the name belongs to another run.
    """
    run_dir = folder_of(config)
    saved = run_dir / checkpoint.CONFIG
    checkpoint.sweep(run_dir)
    if saved.exists() and checkpoint.latest(run_dir) is None and configs.load(saved) != config:
        (run_dir / RUN).unlink(missing_ok=True)  # it never came to a checkpoint: nothing to go on with, start anew
    elif saved.exists():
        _same(configs.load(saved), config)
        known = read_run(run_dir).get("fingerprint", fingerprint)
        if known != fingerprint:
            raise configs.ConfigError(
                f"train.name={config.train.name}: that run was trained on other data ({known}, now {fingerprint}); "
                "choose another train.name"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    config.save(saved)
    write_run(run_dir, fingerprint=fingerprint)
    return run_dir


def open_run(config: Config, run_dir: Path) -> tracking.Run:
    """The run's MLflow record, continued when there is one."""
    known = read_run(run_dir)
    tags = {"d2sm.recipe": config.recipe, "d2sm.data": known["fingerprint"], "d2sm.folder": str(run_dir)}
    if config.tracking.parent:
        tags["mlflow.parentRunId"] = config.tracking.parent
    run = tracking.open_run(config, run_dir=run_dir, tags=tags, run_id=known.get("run_id"))
    write_run(run_dir, run_id=run.id, page=run.page)
    return run


def read_run(run_dir: Path) -> dict[str, Any]:
    """What is known of a run beside its configuration."""
    path = run_dir / RUN
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_run(run_dir: Path, **facts: Any) -> None:
    """Add to what is known of a run."""
    text = json.dumps({**read_run(run_dir), **facts}, indent=2)
    temporary = run_dir / f".{RUN}"
    temporary.write_text(text)
    temporary.replace(run_dir / RUN)


def _same(saved: Config, config: Config) -> None:
    before, now = saved.flat(), config.flat()
    for key in now:
        if before[key] != now[key] and not key.startswith(FREE):
            raise configs.ConfigError(
                f"{key}={now[key]}: the run {config.train.name} was started with {before[key]}; choose another "
                "train.name, or leave the key as it was to go on with that run"
            )


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
    if last and checkpoint.is_of(last, config.train.name):
        for entry in checkpoint.log(last).get("recent", []):  # those that a killed driver had not passed on
            run.log(entry["step"], entry["metrics"])
    if start < steps:
        with Line(config.train.name, steps, start, quiet=quiet) as line:
            record = _Record(run, line, seen, run_dir, start=start, watch=watch, remedy=_remedy(config))
            if (crowded := session.crowded(config)) and not quiet:
                line.say(f"{config.train.name}: {crowded}")
            if left_out := data.left_out(items):
                record({"skipped": left_out})
            with Reader(record) as reader:
                _fit_trainer(config, items, run_dir, steps, fingerprint, reader.mailbox)
        checkpoint.prune(run_dir, config.train.keep)
    elif not quiet:
        print(f"{config.train.name}: already at step {start} of {steps}, nothing to train")
    done = checkpoint.latest(run_dir)
    if done is None:
        raise TrainingError(f"{run_dir}: training ended without a checkpoint")
    run.tag("d2sm.checkpoint", str(done))
    return Trained(config, run_dir, done, int(checkpoint.meta(done)["step"]), run.id, run.uri, fingerprint, seen)


def _fit_trainer(config: Config, items: pa.Table, run_dir: Path, steps: int, fingerprint: str, mailbox: Any) -> None:
    commit, dirty = tracking.commit()
    about = {"name": config.train.name, "data": fingerprint, "commit": commit, "dirty": dirty, "steps": steps}
    train = config.train

    def stream() -> ray.data.Dataset:  # called at every start of the workers, also after a failure
        last = checkpoint.latest(run_dir)
        return data.stream(config, items, int(checkpoint.meta(last)["step"]) if last else 0)

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run_dir": str(run_dir),
            "steps": steps,
            "meta": about,
            "steps_per_epoch": plan.steps_per_epoch(config, items.num_rows),
            "log": mailbox,
        },
        # NCCL takes one worker a GPU.
        torch_config=TorchConfig(
            backend="nccl" if train.use_gpu and train.gpus_per_worker == 1 else "gloo", timeout_s=300
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker={
                "CPU": train.cpus_per_worker,
                **({"GPU": train.gpus_per_worker} if train.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=train.name,
            storage_path=str(run_dir.parent),
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=train.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        datasets={"train": stream},
        # Without splits by place and in order, the stream would be dealt by chance.
        dataset_config=DataConfig(execution_options=_in_order(), enable_shard_locality=False),
    )
    try:
        with session.interruptible():
            trainer.fit()
    except Exception as error:  # Ray wraps what a worker raised in several layers
        reason = session.cause(error)
        if isinstance(reason, (ValueError, OSError)):
            raise TrainingError(f"{train.name}: {' '.join(str(reason).split())[:600]}") from error
        raise


def _remedy(config: Config) -> str:
    """What helps when the workers wait for data."""
    more = f"raise train.data_cpus={config.train.data_cpus:g} where there are more CPUs"
    if prepared.is_prepared(Path(config.data.root)):
        return more
    which = "" if config.data.layout == "cityscapes" else f" --layout {config.data.layout}"
    verb = f"d2sm prepare {config.data.root} FOLDER{which}"
    return f"store the photographs decoded (`{verb}`, then data.root=FOLDER), or {more}"


def _in_order() -> ray.data.ExecutionOptions:
    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


class _Record:
    """Entries of the workers -> the progress line and MLflow."""

    def __init__(
        self,
        run: tracking.Run,
        line: Line,
        seen: dict[str, float],
        run_dir: Path,
        *,
        start: int,
        watch: Watch | None,
        remedy: str,
    ) -> None:
        self.run, self.line, self.seen, self.told = run, line, seen, start
        self.watch, self.waiting = watch, Waiting(remedy)
        self.skipped_file = run_dir / "skipped.json"
        self.skipped: dict[str, str] = json.loads(self.skipped_file.read_text()) if self.skipped_file.exists() else {}

    def __call__(self, entry: Entry) -> None:
        if "skipped" in entry:
            self._skip(dict(entry["skipped"]))
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
        if warning := self.waiting(entry["step"], metrics):
            self.line.say(f"{self.line.what}: {warning}")

    def _skip(self, files: dict[str, str]) -> None:
        fresh = {file: why for file, why in files.items() if file not in self.skipped}
        self.skipped.update(fresh)
        for why in fresh.values():
            self.line.say(f"skipped: {why}")
        self.skipped_file.write_text(json.dumps(self.skipped, indent=2))
        self.run.file(self.skipped_file)
        self.run.tag("d2sm.skipped_images", str(len(self.skipped)))


logging.getLogger("ray.train").addHandler(logging.NullHandler())
