"""The training loop that every Ray Train worker runs, or the run's own process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain
from threading import Event, Thread
from typing import Any

import ray
import ray.train
import torch

from d2sm.distributed import AnyRank, wait_for_slow_ranks
from pipelines.config import ConfigError
from pipelines.data import stream
from pipelines.runs import checkpoint
from pipelines.runs.writer import CheckpointWriter
from pipelines.runtime import files, memory
from pipelines.text import one_line
from pipelines.training.finite import TrainingError
from pipelines.training.initial import load as load_initial
from pipelines.training.interrupt import StopRequest
from pipelines.training.log import Log
from pipelines.training.messages import WorkerTask
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from pipelines.training.validation import Validation

# Not retryable: restarting from the same checkpoint would hit them again; another OSError may be transient.
_NOT_RETRYABLE = (TrainingError, ConfigError, files.DiskFullError)
_DATA_PATIENCE = 60.0  # seconds


def train_loop(task: WorkerTask) -> None:
    """Ray's entry point, called on every worker at each start; does nothing after an error that is not retryable."""
    if ray.get(task.messages.failure.remote()):
        return
    try:
        train(task)
    except Exception as error:
        reason = error
        if memory.is_out_of_memory(error):
            reason = TrainingError(
                f"too little memory: {one_line(error, 200)}; raise train.accumulate, or set train.recompute=true, or "
                "lower data.crop_size, train.batch_size or loss.queue_size"
            )
        if isinstance(reason, _NOT_RETRYABLE):
            ray.get(task.messages.set_failure.remote(str(reason)))
        if reason is error:
            raise
        raise reason from None  # the driver shows the innermost error


def train(task: WorkerTask) -> None:
    """Train from the last complete checkpoint to step `task.steps`, or until the driver requests a stop."""
    config, context = task.config, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.train.threads)
    wait_for_slow_ranks()
    rows = begin_stream()
    last = task.folder.refresh().latest()
    initial = None if last else load_initial(config, task.folder)
    device = torch.device("cuda" if config.train.use_gpu else "cpu") if config.train.local else None
    state = TrainState(config, task.steps_per_epoch, store_uri=task.store_uri, initial=initial, device=device)
    step = state.restore(last) if last else 0
    log = Log(task.messages, step, rank, config.loss)
    log.start(workers)
    if last and checkpoint.is_of(last, config.train.name):
        log.resume(checkpoint.log(last), workers, state.device)
    stop_request, any_rank = StopRequest(task.messages, enabled=rank == 0), AnyRank()
    validation = Validation(task, state, log, last, stop_request, any_rank)

    with CheckpointWriter(task.folder, config.train.keep) as writer:

        def save(step: int, *, final: bool) -> None:
            log_state = log.state(log.gather(step))  # raises if a number is not finite: such a state is never saved
            if rank == 0:
                meta = {**task.meta, "step": step, "epoch": step // task.steps_per_epoch, "final": final}
                writer.save(
                    step,
                    weights=state.weights(),
                    state=state.state_dict(),
                    config=config,
                    meta=meta | validation.meta(),
                    log=log_state | validation.saved(),
                )

        if validation.owed(step):
            save(step, final=True)
            return
        if validation.interrupted:
            return
        for row in batches(rows, log):
            if (int(row["step"]), int(row["rank"])) != (step, rank):
                raise TrainingError(
                    f"step {step}: worker {rank} got worker {row['rank']}'s crops of step {row['step']}"
                )
            any_rank.start(stop_request.received())  # exchanged while the step runs
            rank_weight = len(row["sigma"]) * workers / config.train.batch_size
            log.add(train_step(state, row, step, rank_weight, rank), rank_weight)
            step += 1
            stop, final = any_rank.result(), step == task.steps
            if validation.after(step):  # on all ranks: training stops early
                stop = final = True
            stop |= validation.interrupted

            if final or step % config.train.log_every == 0:
                log.flush(step, lr=float(state.schedule.get_last_lr()[0]))
            if final or stop or validation.improved_at == step or step % config.train.checkpoint_every == 0:
                save(step, final=final)
            if stop:
                return


def begin_stream() -> Future[Iterator[Any]]:
    """Ask for this rank's first row of the stream in a thread: Ray needs seconds for it, in which a rank builds what it
    trains. Gives the rows, from when the first is there.
    """
    begun: Future[Iterator[Any]] = Future()

    def begin() -> None:
        try:
            shard = ray.train.get_dataset_shard("train")
            rows = iter(shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2))
            first = next(rows, None)
            begun.set_result(rows if first is None else chain([first], rows))
        except BaseException as error:
            begun.set_exception(error)

    Thread(target=begin, name="first row", daemon=True).start()
    return begun


def batches(
    begun: Future[Iterator[Any]], log: Log, *, patience: float = _DATA_PATIENCE
) -> Iterator[stream.WorkerBatch]:
    """This rank's rows of the stream, one a step; adds the time waited for them to the log.

    Args:
        patience: seconds of waiting for a row after which the driver is told. Nothing ends the wait (see
            `stream.stream`): CPUs may become free, and storage answer.
    """
    asked: float | None = None  # when the row that is waited for was asked for; None while a step runs
    ended = Event()

    def watch() -> None:
        told = None
        while not ended.wait(patience / 10):
            since = asked
            if since is not None and since != told and time.monotonic() - since >= patience:
                told = since
                log.data_missing(patience)

    Thread(target=watch, name="data wait", daemon=True).start()
    try:
        while True:
            asked = time.monotonic()
            batch = next(begun.result(), None)
            if batch is None:
                return
            log.waited += time.monotonic() - asked
            asked = None
            row = {name: column[0] for name, column in batch.items()}
            log.skipped(stream.skipped_files(row.pop("skipped")))
            yield stream.trim(row)
    finally:
        ended.set()
