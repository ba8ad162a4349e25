"""One training step. It needs no Ray, so that tests and benchmarks take it as a worker does."""

from __future__ import annotations

from torch import Tensor, nn

from pipelines.data import stream
from pipelines.training.backward import (
    autocast,
    backward_through_network,
    forward,
    forward_without_graph,
    limit_chunks,
    split,
)
from pipelines.training.compiled import compile_errors
from pipelines.training.finite import check
from pipelines.training.state import TrainState


def train_step(
    state: TrainState, row: stream.WorkerBatch, step: int, rank_weight: float = 1.0, rank: int = 0
) -> dict[str, Tensor]:
    """One step on this rank's crops; gives losses and gradient norms, still on the device.

    No number is read back from the device here, so that on a GPU the host can run ahead.

    Args:
        row: from the stream, see `pipelines.data.stream`.
        step: for the random numbers, and for the message of an error.
        rank_weight: see `Objective.forward`.
        rank: for the random numbers, see `TrainState.draw_anew`.

    Raises:
        ConfigError: `train.compile` is set and the step cannot be compiled here.
        TrainingError: a loss is not finite (on the CPU; on a GPU the log finds it at its next entry).
    """
    train = state.config.train
    clean, noisy, sigma, labels = state.load(row)  # they are degraded here
    state.optimizer.zero_grad(set_to_none=True)
    state.draw_anew(step, rank)

    # Forward and backward. With micro-batches (`train.accumulate`) the backward pass of the loss ends at the restored
    # images, and a second one goes through the network, with no_sync until the last micro-batch: see backward.py.
    micro_batches = split(noisy, sigma, train.accumulate)
    with compile_errors(train):
        if len(micro_batches) == 1:
            restored, estimate = forward(state.model, noisy, sigma, train)
        else:
            (restored, estimate), random_states = forward_without_graph(state.model, micro_batches, train)
            limit_chunks(state.objective, len(micro_batches[0][0]))
        with autocast(state.device, train):
            loss, losses = state.objective(
                restored, clean, sigma=sigma, estimate=estimate, labels=labels, rank_weight=rank_weight
            )
        loss.backward()
        if len(micro_batches) > 1:
            backward_through_network(state.model, micro_batches, (restored, estimate), random_states, train)
    if state.device.type == "cpu":
        check(losses, f"step {step}", state.config.loss)

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
