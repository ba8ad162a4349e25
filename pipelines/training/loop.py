"""What every Ray Train worker runs: one linear loop over the steps of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from d2sm.distributed import AnyRank
from d2sm.models.activation_checkpointing import checkpoint_activations
from pipelines.config import Config, ConfigError
from pipelines.data import stream
from pipelines.networks.models import TrainingModule, build
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.writer import CheckpointWriter
from pipelines.sections import Train
from pipelines.training.backward import Gradient
from pipelines.training.discriminator import DiscriminatorOptimizer
from pipelines.training.finite import TrainingError, check
from pipelines.training.interrupt import StopRequest
from pipelines.training.log import Log
from pipelines.training.objective import Objective

_Tensors = tuple[Tensor, ...] | list[Tensor]


_SURE = (TrainingError, ConfigError)  # from the same checkpoint they come again; a file may be back by then


def train_loop(job: Mapping[str, Any]) -> None:
    """What Ray starts, and starts again when a worker fails: then in vain, when it would fail again (`_SURE`)."""
    if ray.get(job["log"].failed.remote()):
        return
    try:
        train(job)
    except _SURE as error:
        ray.get(job["log"].fail.remote(str(error)))
        raise


def train(job: Mapping[str, Any]) -> None:
    """Train from the last complete checkpoint to the end of the plan.

    Args:
        job: config (as saved), folder (a `RunFolder`), steps (in all), steps_per_epoch, meta (what checkpoints
            say of the data), log (handle of the actor that takes log entries).
    """
    config = Config.model_validate(job["config"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.train.threads)
    worker = Worker(config, job["steps_per_epoch"])
    folder: RunFolder = job["folder"]
    last = folder.refresh().latest()
    step = worker.restore(last) if last else 0
    log = Log(job["log"], step, speaks=rank == 0)
    log.begin(workers)
    if last:
        ours = checkpoint.is_of(last, config.train.name)
        log.resume(checkpoint.log(last), rank, workers, worker.device, ours=ours)
    wish, any_rank = StopRequest(job["log"], listens=rank == 0), AnyRank()
    with CheckpointWriter(folder, config.train.keep) as writer:
        for row in _shares(ray.train.get_dataset_shard("train"), log):
            if (row["step"], row["rank"]) != (step, rank):
                raise TrainingError(
                    f"step {step}: worker {rank} got worker {row['rank']}'s crops of step {row['step']}"
                )
            any_rank.start(wish.known())
            share = len(row["sigma"]) * workers / config.train.batch_size
            log.add(worker.step(row, step, share), share)
            step += 1
            ends = any_rank.result()
            final = step == job["steps"]
            if final or step % config.train.log_every == 0:
                log.flush(step, lr=float(worker.schedule.get_last_lr()[0]))
            if final or ends or step % config.train.checkpoint_every == 0:
                state = log.state(log.gather(step))  # which raises on a broken state: that is never saved
                if rank == 0:
                    worker.save(writer, step, final, job["meta"], state)
            if ends:
                return


class Worker:
    """Network, objective and optimizer of one worker, and the step they make together; a discriminator's too."""

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.device = ray.train.torch.get_device()
        torch.manual_seed(config.train.seed)
        network = build(config.model).to(self.device).to(memory_format=torch.channels_last)
        if config.train.recompute:
            checkpoint_activations(network)
        self.average = _average(network, config.train.ema)
        learner = TrainingModule(network, estimate=config.loss.judges_estimate)
        if config.train.compile:
            learner.compile(fullgraph=True, dynamic=False)  # in place: the names of its weights stay
        self.model: nn.Module = ray.train.torch.prepare_model(learner)
        self.network = network
        # Phi as well: its convolutions are given restored images, which are channels-last.
        self.objective = Objective(config.loss).to(self.device).to(memory_format=torch.channels_last).train()
        self.gradient = Gradient(self.model, self.objective, config.train)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.train.lr, betas=config.train.betas)
        judge = self.objective.adversarial
        self.adversary = DiscriminatorOptimizer(judge.discriminator, config) if judge is not None else None
        self.schedule = LambdaLR(self.optimizer, lambda step: rate(config.train, step, steps_per_epoch))

    def step(self, row: stream.WorkerBatch, step: int, share: float = 1.0) -> dict[str, Tensor]:
        """Descend once; gives the step's numbers, still on the device. `share`: see `Objective.forward`."""
        clean, noisy, sigma = stream.to_tensors(row, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        labels = stream.labels(row, self.device)
        parts = self.gradient(clean=clean, noisy=noisy, sigma=sigma, labels=labels, share=share)
        if self.device.type == "cpu":  # elsewhere looking would stop the queue
            check(parts, f"step {step}")
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.clip or float("inf"))
        self.optimizer.step()
        self.schedule.step()
        numbers = {**parts, "gradient_norm": norm}
        if self.adversary is not None:
            numbers["discriminator_gradient_norm"] = self.adversary.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return numbers

    def save(
        self, writer: CheckpointWriter, step: int, final: bool, about: Mapping[str, Any], log: Mapping[str, Any]
    ) -> None:
        """Hand a checkpoint to whom it is written by, beside the next steps."""
        weights = self.average.module if self.average is not None else self.network
        meta = {**about, "step": step, "epoch": step // self.steps_per_epoch, "final": final}
        writer.save(step, weights=weights.state_dict(), state=self.state(), config=self.config, meta=meta, log=log)

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on. All workers hold the same."""
        return {
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "objective": self.objective.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary is not None else None,
            "random": torch.get_rng_state(),
        }

    def restore(self, folder: Path) -> int:
        """Go on from a checkpoint; gives its step."""
        state = checkpoint.load_state(folder)
        checkpoint.fill(self.network, state["model"], folder / checkpoint.STATE)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict({**state["schedule"], "lr_lambdas": self.schedule.state_dict()["lr_lambdas"]})
        self.objective.load_state_dict(state["objective"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        torch.set_rng_state(state["random"])
        step = int(checkpoint.meta(folder)["step"])
        self._set_rate(step)
        return step

    def _set_rate(self, step: int) -> None:
        """The configured rate, not the saved one: they differ when a sweep goes on from another trial's checkpoint."""
        lr = self.config.train.lr
        self.schedule.base_lrs = [lr for _ in self.schedule.base_lrs]
        for group in self.optimizer.param_groups:
            group["initial_lr"], group["lr"] = lr, lr * rate(self.config.train, step, self.steps_per_epoch)


def rate(train: Train, step: int, steps_per_epoch: int) -> float:
    """The learning rate at a step, as a share of `train.lr`."""
    warm = min(1.0, (step + 1) / (train.warmup_steps + 1))
    if train.schedule == "halve":  # the paper's
        epoch = step // steps_per_epoch
        return float(warm * 0.5 ** sum(epoch >= at for at in train.halve_at))
    if train.schedule == "cosine":
        total = train.epochs * steps_per_epoch
        after = max(0, step - train.warmup_steps) / max(1, total - train.warmup_steps)
        return float(warm * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, after))).item()) / 2)
    return warm


def _shares(shard: Any, log: Log) -> Iterator[dict[str, Any]]:
    """Rows of the stream for this worker; counts the time spent waiting for them."""
    batches = iter(shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2))
    while True:
        asked = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        log.waited += time.monotonic() - asked
        row = {name: column[0] for name, column in batch.items()}
        log.skipped(stream.skipped_files(row.pop("skipped")))
        yield stream.trim(row)


def _average(network: nn.Module, decay: float) -> AveragedModel | None:
    """The averaged weights. The decay rises to its value, so that a short run does not remember its random start."""

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        done = int(average.n_averaged)  # it counts on the CPU, but hands out a copy on the device: reading that waits
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + done) / (10 + done)))

    if not decay:
        return None
    average = AveragedModel(network, multi_avg_fn=update)
    return average
