"""Ray Train's workers on Ray Data's stream: as many as configured, or as many as there are places for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines import tracking
from pipelines.config import Config
from pipelines.data import plan
from pipelines.data import stream as data
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import resources, session
from pipelines.text import one_line
from pipelines.training import interrupt
from pipelines.training.finite import TrainingError
from pipelines.training.loop import train_loop

_GROWS = 15.0  # seconds between two looks whether a run with [least, most] workers may have more
_PLACES = 40  # tries to place the workers, 15 s each (`session.ENVIRONMENT`): an autoscaler may need minutes for a node
_LOSSES = 8  # restarts that a run with [least, most] workers has in any case: it was asked to live with losses
_Stream = Callable[[int], ray.data.Dataset]


def run(
    config: Config,
    folder: RunFolder,
    items: pa.Table,
    steps: int,
    fingerprint: str,
    mailbox: Any,
    say: Callable[[str], None],
) -> bool:
    """Train from the last checkpoint to step `steps`; whether Ctrl-C ended it before, after a checkpoint.

    Args:
        mailbox: the actor that takes the workers' log (`progress.Mailbox`).
        say: shows a line.

    Raises:
        TrainingError: one line.
        KeyboardInterrupt: Ctrl-C twice.
    """
    trainer = _trainer(config, folder, items, steps, fingerprint, mailbox)

    def ask() -> None:
        mailbox.end.remote()
        say(f"{config.train.name}: ends after this step, with a checkpoint; Ctrl-C again leaves at once")

    try:
        ended = interrupt.interruptible(trainer.fit, ask=ask)
    except Exception as error:  # Ray wraps what a worker raised in several layers
        reason = session.cause(error)
        if isinstance(reason, (ValueError, OSError)):
            raise TrainingError(f"{config.train.name}: {one_line(reason, 600)}") from error
        raise
    if reason := ray.get(mailbox.failed.remote()):
        raise TrainingError(f"{config.train.name}: {reason}")
    return ended


class _Losses(UserCallback):
    """Tells the driver, from where Ray watches the workers, which of them died."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if not any(isinstance(session.cause(error), ValueError) for error in worker_exceptions.values()):
            self.mailbox.put.remote({"lost": sorted(worker_exceptions)})


def _trainer(
    config: Config, folder: RunFolder, items: pa.Table, steps: int, fingerprint: str, mailbox: Any
) -> TorchTrainer:
    commit, dirty = tracking.commit()
    train = config.train
    job = {
        "config": config.model_dump(mode="json"),
        "folder": folder,
        "steps": steps,
        "meta": {"name": train.name, "data": fingerprint, "commit": commit, "dirty": dirty, "steps": steps},
        "steps_per_epoch": plan.steps_per_epoch(config, items.num_rows),
        "log": mailbox,
    }
    return TorchTrainer(
        train_loop,
        train_loop_config=job,
        # NCCL takes one worker a GPU.
        torch_config=TorchConfig(
            backend="nccl" if train.use_gpu and train.gpus_per_worker == 1 else "gloo", timeout_s=300
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=resources.reserved(config),
            elastic_resize_monitor_interval_s=_GROWS,
        ),
        run_config=RunConfig(
            name=train.name,
            storage_path=str(folder.path.parent),  # for Ray's own files; `CheckpointWriter` writes the checkpoints
            failure_config=FailureConfig(
                max_failures=max(train.max_failures, _LOSSES * train.elastic), controller_failure_limit=_PLACES
            ),
            callbacks=[_Losses(mailbox)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        # Ray calls this at every start of the workers, and `Shares` calls what it gets.
        datasets={"train": lambda: partial(_stream, config, folder, items)},
        dataset_config=Shares(),
    )


def _stream(config: Config, folder: RunFolder, items: pa.Table, workers: int) -> ray.data.Dataset:
    """What is left of the run from its last checkpoint, dealt to so many workers."""
    last = folder.refresh().latest()
    return data.stream(config, items, int(checkpoint.meta(last)["step"]) if last else 0, workers=workers)


class Shares(DataConfig):
    """Deals the stream to the workers in order, whatever their number is by now."""

    def __init__(self) -> None:
        # Without splits in order and whatever the place, the stream would be dealt by chance.
        options = ray.data.ExecutionOptions()
        options.preserve_order = True
        super().__init__(execution_options=options, enable_shard_locality=False)

    def configure(self, datasets: dict[str, _Stream], world_size: int, *args: Any, **kwargs: Any) -> Any:
        made = {name: stream(world_size) for name, stream in datasets.items()}
        return super().configure(made, world_size, *args, **kwargs)


logging.getLogger("ray.train").addHandler(logging.NullHandler())
