"""Starts Ray Train on Ray Data's stream: a fixed or an elastic number of workers, or none (its local mode)."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from d2sm import __version__
from d2sm.distributed import CAN_SET_TIMEOUT
from pipelines import tracking
from pipelines.config import Config
from pipelines.data import plan, stream
from pipelines.data.ordered import OrderedShards
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files, leaving, private, resources, session
from pipelines.runtime.threads import torch_threads
from pipelines.text import one_line
from pipelines.tracking.segmenter import segmenter_store
from pipelines.training import initial, interrupt
from pipelines.training.finite import TrainingError
from pipelines.training.loop import train_loop
from pipelines.training.messages import ValidationSet, WorkersLost, WorkerTask

_RESIZE_INTERVAL = 15.0  # seconds between two checks whether an elastic run can have more workers
_PLACEMENT_ATTEMPTS = 40  # of 15 s each (`session.ENVIRONMENT`): an autoscaler may need minutes for a node
_here = threading.Lock()  # held while this process trains
_ELASTIC_RESTARTS = 8  # an elastic run expects to lose workers, so it restarts this often whatever train.max_failures


def run(
    config: Config,
    folder: RunFolder,
    items: pa.Table,
    steps: int,
    fingerprint: str,
    messages: Any,
    say: Callable[[str], None],
    at_work: Callable[[], bool],
    validation: ValidationSet | None = None,
) -> bool:
    """Train from the last checkpoint to step `steps`; gives whether Ctrl-C ended it earlier, with a checkpoint.

    Args:
        folder: the run's.
        items: the images, from `training_images`.
        fingerprint: of the images, recorded in the checkpoints.
        messages: handle of the run's `MessageQueue`.
        say: shows a line.
        at_work: whether workers have begun.
        validation: what is measured while training; None: nothing.

    Raises:
        TrainingError: one line.
        KeyboardInterrupt: Ctrl-C twice.
    """
    commit, dirty = tracking.commit()
    task = WorkerTask(
        config=config,
        folder=folder,
        steps=steps,
        steps_per_epoch=plan.steps_per_epoch(config, items.num_rows),
        meta={
            "name": config.train.name,
            "data": fingerprint,
            "version": __version__,
            "commit": commit,
            "dirty": dirty,
            "steps": steps,
            **({"init": started_from} if (started_from := initial.note(config, folder)) else {}),
        },
        messages=messages,
        store_uri=segmenter_store(config),
        validation=validation,
    )

    def request_stop() -> None:
        messages.request_stop.remote()
        say(f"{config.train.name}: ends after this step, with a checkpoint; Ctrl-C again leaves at once")

    fit = partial(_fit_here, task, items) if config.train.local else _trainer(task, items).fit
    try:
        stopped = interrupt.run_interruptible(fit, request_stop=request_stop, at_work=at_work)
    except leaving.LostError:
        raise
    except interrupt.Abandoned:
        messages.request_stop.remote()  # where no worker was at work yet, so that it is not trained unseen
        raise
    except Exception as error:  # Ray wraps a worker's exception in several layers
        cause = session.cause(error)
        if isinstance(cause, (ValueError, OSError)):
            raise TrainingError(f"{config.train.name}: {one_line(cause, 600)}") from error
        raise
    if reason := ray.get(messages.failure.remote()):
        raise TrainingError(f"{config.train.name}: {reason}")
    return stopped


def _trainer(task: WorkerTask, items: pa.Table) -> TorchTrainer:
    config, train = task.config, task.config.train
    trainer = TorchTrainer(
        partial(train_loop, task),  # not as train_loop_config, which Ray shows in its dashboard, URIs and all
        torch_config=TorchConfig(
            # NCCL allows one rank per GPU.
            backend="nccl" if train.use_gpu and train.gpus_per_worker == 1 else "gloo",
            # To find each other; from then on see `wait_for_slow_ranks`. Where that cannot change it, torch's own.
            timeout_s=300 if CAN_SET_TIMEOUT else 1800,
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=resources.worker_resources(config),
            elastic_resize_monitor_interval_s=_RESIZE_INTERVAL,
        ),
        run_config=RunConfig(
            name=train.name,
            storage_path=str(task.folder.path.parent),  # for Ray's own files; `CheckpointWriter` writes the checkpoints
            failure_config=FailureConfig(
                max_failures=max(train.max_failures, _ELASTIC_RESTARTS * train.elastic),
                controller_failure_limit=_PLACEMENT_ATTEMPTS,
            ),
            callbacks=[_ReportLostWorkers(task.messages)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        datasets={"train": partial(_remaining_stream, config, task.folder, items)},
        dataset_config=OrderedShards(),
    )
    if session.started_here():  # its processes, and what they reserve, end with the one that has started it
        private.without_cleaner(trainer)
    return trainer


def _fit_here(task: WorkerTask, items: pa.Table) -> None:
    """Ray Train's local mode: this process trains, and reads the stream itself.

    Raises:
        TrainingError: another thread of this process does so too. They would share Ray Train's context, and torch's
            random numbers.
    """
    config = task.config
    if not _here.acquire(blocking=False):
        raise TrainingError("train.num_workers=0: this process trains another run; wait for its end, or give 1 worker")
    try:
        trainer = TorchTrainer(
            partial(train_loop, task),
            scaling_config=ScalingConfig(num_workers=0),
            datasets={"train": _remaining_stream(config, task.folder, items)(workers=1)},
        )
        gpus = [torch.cuda.current_device()] if config.train.use_gpu else []
        # The process is not the training's alone, and keeps its own settings.
        with torch_threads(config.train.threads), torch.random.fork_rng(gpus):
            trainer.fit()
    finally:
        if config.train.use_gpu:
            gc.collect()  # captured or compiled networks are in cycles
            torch.cuda.empty_cache()
        _here.release()


class _ReportLostWorkers(UserCallback):
    """Runs in Ray Train's controller: tells the driver which workers died."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # These are errors of ours, which end the run with their own message.
        ours = (ValueError, files.DiskFullError)
        if not any(isinstance(session.cause(error), ours) for error in worker_exceptions.values()):
            self.messages.send.remote(WorkersLost(tuple(sorted(worker_exceptions))))


def _remaining_stream(config: Config, folder: RunFolder, items: pa.Table) -> Callable[..., ray.data.Dataset]:
    """The stream of the steps after the last checkpoint, a function of the number of workers.

    With workers it runs in Ray Train's controller, at every start of them. What it gives is unpickled in an actor of
    Ray's that needs no torch, so it refers to light modules alone.
    """
    last = folder.refresh().latest()
    return partial(stream.stream, config, items, checkpoint.step(last) if last else 0)


logging.getLogger("ray.train").addHandler(logging.NullHandler())  # else Python prints its warnings to stderr
