"""The training loop that every Ray Train worker runs, and one step of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import torch
from torch import Tensor, nn

from d2sm.distributed import AnyRank
from pipelines.config import ConfigError
from pipelines.data import stream
from pipelines.runs import checkpoint
from pipelines.runs.writer import CheckpointWriter
from pipelines.runtime import files
from pipelines.training.backward import (
    autocast,
    backward_through_network,
    forward,
    forward_without_graph,
    limit_chunks,
    split,
)
from pipelines.training.finite import TrainingError, check
from pipelines.training.interrupt import StopRequest
from pipelines.training.log import Log
from pipelines.training.messages import WorkerTask
from pipelines.training.state import TrainState

# Not retryable: restarting from the same checkpoint would hit them again; another OSError may be transient.
_NOT_RETRYABLE = (TrainingError, ConfigError, files.DiskFullError)


def train_loop(task: WorkerTask) -> None:
    """Ray's entry point, called on every worker at each start; does nothing after an error that is not retryable."""
    if ray.get(task.messages.failure.remote()):
        return
    try:
        train(task)
    except _NOT_RETRYABLE as error:
        ray.get(task.messages.set_failure.remote(str(error)))
        raise


def train(task: WorkerTask) -> None:
    """Train from the last complete checkpoint to step `task.steps`, or until the driver requests a stop."""
    config, context = task.config, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.train.threads)
    state = TrainState(config, task.steps_per_epoch, store_uri=task.store_uri)
    last = task.folder.refresh().latest()
    step = state.restore(last) if last else 0
    log = Log(task.messages, step, rank)
    log.start(workers)
    if last and checkpoint.is_of(last, config.train.name):
        log.resume(checkpoint.log(last), workers, state.device)
    stop_request, any_rank = StopRequest(task.messages, enabled=rank == 0), AnyRank()

    with CheckpointWriter(task.folder, config.train.keep) as writer:
        for row in batches(ray.train.get_dataset_shard("train"), log):
            if (int(row["step"]), int(row["rank"])) != (step, rank):
                raise TrainingError(
                    f"step {step}: worker {rank} got worker {row['rank']}'s crops of step {row['step']}"
                )
            any_rank.start(stop_request.received())  # exchanged while the step runs
            rank_weight = len(row["sigma"]) * workers / config.train.batch_size
            log.add(train_step(state, row, step, rank_weight), rank_weight)
            step += 1
            stop, final = any_rank.result(), step == task.steps

            if final or step % config.train.log_every == 0:
                log.flush(step, lr=float(state.schedule.get_last_lr()[0]))
            if final or stop or step % config.train.checkpoint_every == 0:
                log_state = log.state(log.gather(step))  # raises if a number is not finite: such a state is never saved
                if rank == 0:
                    meta = {**task.meta, "step": step, "epoch": step // task.steps_per_epoch, "final": final}
                    writer.save(
                        step, weights=state.weights(), state=state.state_dict(), config=config, meta=meta, log=log_state
                    )
            if stop:
                return


def train_step(state: TrainState, row: stream.WorkerBatch, step: int, rank_weight: float = 1.0) -> dict[str, Tensor]:
    """One step on this rank's crops; gives losses and gradient norms, still on the device.

    No number is read back from the device here, so that on a GPU the host can run ahead.

    Args:
        row: from the stream, see `pipelines.data.stream`.
        step: for the message of an error.
        rank_weight: see `Objective.forward`.

    Raises:
        TrainingError: a loss is not finite (on the CPU; on a GPU the log finds it at its next entry).
    """
    train, degradation = state.config.train, state.config.noise.degradation
    clean, noisy, sigma = stream.to_tensors(row, state.device, degradation)  # the noise is added here
    labels = stream.labels(row, state.device)
    state.optimizer.zero_grad(set_to_none=True)

    # Forward and backward. With micro-batches (`train.accumulate`) the backward pass of the loss ends at the restored
    # images, and a second one goes through the network, with no_sync until the last micro-batch: see backward.py.
    micro_batches = split(noisy, sigma, train.accumulate)
    if len(micro_batches) == 1:
        restored, estimate = forward(state.model, noisy, sigma, train)
    else:
        restored, estimate = forward_without_graph(state.model, micro_batches, train)
        limit_chunks(state.objective, len(micro_batches[0][0]))
    with autocast(state.device, train):
        loss, losses = state.objective(
            restored, clean, sigma=sigma, estimate=estimate, labels=labels, rank_weight=rank_weight
        )
    loss.backward()
    if len(micro_batches) > 1:
        backward_through_network(state.model, micro_batches, (restored, estimate), train)
    if state.device.type == "cpu":
        check(losses, f"step {step}")

    # Clip, step, EMA. `loss` holds the discriminator's loss too, so its gradients are there as well.
    gradient_norm = nn.utils.clip_grad_norm_(state.network.parameters(), train.clip or float("inf"))
    state.optimizer.step()
    state.schedule.step()
    numbers = {**losses, "gradient_norm": gradient_norm}
    if state.discriminator_optimizer is not None:
        numbers["discriminator_gradient_norm"] = state.discriminator_optimizer.step()
    if state.ema is not None:
        state.ema.update(state.network)
    return numbers


def batches(shard: Any, log: Log) -> Iterator[stream.WorkerBatch]:
    """This rank's rows of the stream, one a step; adds the time waited for them to the log."""
    rows = iter(shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2))
    while True:
        asked = time.monotonic()
        batch = next(rows, None)
        if batch is None:
            return
        log.waited += time.monotonic() - asked
        row = {name: column[0] for name, column in batch.items()}
        log.skipped(stream.skipped_files(row.pop("skipped")))
        yield stream.trim(row)
