"""What a rank trains, and what a checkpoint restores: network, objective, optimizers, learning rate schedule, EMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from d2sm.images import skip_range_checks
from d2sm.models.activation_checkpointing import checkpoint_activations
from pipelines.config import Config
from pipelines.data import labels
from pipelines.networks.models import TrainingModule, build
from pipelines.runs import checkpoint
from pipelines.sections import Train
from pipelines.text import one_line
from pipelines.training.adam import adam, load
from pipelines.training.batches import Loader
from pipelines.training.compiled import compile_step
from pipelines.training.discriminator import DiscriminatorOptimizer
from pipelines.training.ema import EMA
from pipelines.training.graphs import use_graphs
from pipelines.training.objective import Objective


class TrainState:
    """Everything that a step changes. All ranks hold the same values; `draw_anew` gives each its own random numbers.

    Args:
        config: the run.
        steps_per_epoch: for the learning rate schedule.
        store_uri: see `Objective`.
        initial: weights that the network starts from (`train.init`); None: random ones of the seed.
        device: where it trains, by itself; None: on the device of this Ray Train worker, beside the other workers.

    Attributes:
        load: makes the tensors of a row of the stream.
        network: the backbone; its weights are trained.
        model: `network` as a step calls it, (noisy, sigma) -> (restored, estimate or None), compiled and wrapped in
            DistributedDataParallel as configured.
        objective: the weighted sum of losses, with D2SM's queues and the discriminator. Not wrapped, because its
            gradient already accounts for all ranks.
        optimizer, schedule: Adam on the network.
        discriminator_optimizer: None without an adversarial term.
        ema: exponential moving average of the network's weights; None with `train.ema=0`.
    """

    def __init__(
        self,
        config: Config,
        steps_per_epoch: int,
        *,
        store_uri: str = "",
        initial: Mapping[str, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        train = config.train
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.device, wrap = (device, _alone) if device is not None else _ray_worker()
        self.load = Loader(config, self.device)
        torch.manual_seed(train.seed)
        self.network = build(config.model).to(self.device).to(memory_format=torch.channels_last)
        if initial is not None:  # before the EMA, which starts as a copy
            checkpoint.fill(self.network, initial, Path(train.init))
        if train.recompute:
            checkpoint_activations(self.network)
        self.ema = EMA(self.network, train.ema) if train.ema else None
        module = TrainingModule(self.network, estimate=config.loss.uses_estimate)
        # channels_last for Phi too, because restored images arrive in that layout.
        objective = Objective(config.loss, store_uri=store_uri, classes=labels.of(config).like)
        self.objective = objective.to(self.device).to(memory_format=torch.channels_last).train()
        if train.compile:
            compile_step(module, self.objective)
        if train.cuda_graphs:
            use_graphs(module, self.objective)
        self.model = wrap(module)
        self.optimizer = adam(self.network.parameters(), lr=train.lr, betas=train.betas)
        self.schedule = LambdaLR(self.optimizer, lambda step: lr_factor(train, step, steps_per_epoch))
        adversarial = self.objective.adversarial
        self.discriminator_optimizer = (
            DiscriminatorOptimizer(adversarial.discriminator, config) if adversarial is not None else None
        )

    def draw_anew(self, step: int, rank: int) -> None:
        """Begin torch's random numbers of a rank's step, for dropout: others on each rank, the same in a resumed run.

        They are drawn for a whole batch at once, so they depend on how many ranks share the crops of a step.
        """
        torch.manual_seed(
            int(np.random.SeedSequence([self.config.train.seed, step, rank]).generate_state(1, np.uint64)[0])
        )

    def weights(self) -> dict[str, Tensor]:
        """The weights that are saved as the model: the EMA's where there is one."""
        return (self.network if self.ema is None else self.ema.module).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint's state.pt holds. Its keys are a file format: old runs resume from them."""
        return {
            "model": self.network.state_dict(),
            "average": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"},
            "objective": self.objective.state_dict(),
            "adversary": self.discriminator_optimizer.state_dict() if self.discriminator_optimizer else None,
            "random": torch.get_rng_state(),  # for a network that draws in eval mode, in a validation that is owed
        }

    def restore(self, folder: Path) -> int:
        """Load a checkpoint; gives its step.

        The learning rate is the configured one, not the saved one: in population-based training a trial continues from
        the checkpoint of another with its own rate.

        Raises:
            CheckpointError: it is damaged, or of another model.
        """
        state, step = checkpoint.load_state(folder), checkpoint.step(folder)
        try:
            return self._restore(state, step, folder)
        except checkpoint.CheckpointError:
            raise
        except Exception as error:  # of a state with other keys, shapes or types, torch raises whatever comes of it
            raise checkpoint.CheckpointError(
                f"{folder / checkpoint.STATE}: not the state of this run ({one_line(error, 160)}); {checkpoint.REMEDY}"
            ) from None

    def _restore(self, state: dict[str, Any], step: int, folder: Path) -> int:
        checkpoint.fill(self.network, state["model"], folder / checkpoint.STATE)
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])
        load(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict({**state["schedule"], "lr_lambdas": self.schedule.state_dict()["lr_lambdas"]})
        self.objective.load_state_dict(state["objective"])
        skip_range_checks(self.objective)
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.load_state_dict(state["adversary"])
        torch.set_rng_state(state["random"])
        lr = self.config.train.lr
        self.schedule.base_lrs = [lr for _ in self.schedule.base_lrs]
        for group in self.optimizer.param_groups:
            group["initial_lr"], group["lr"] = lr, lr * lr_factor(self.config.train, step, self.steps_per_epoch)
        return step


def _ray_worker() -> tuple[torch.device, Callable[[nn.Module], nn.Module]]:
    """The device of this Ray Train worker, and what wraps its network in DistributedDataParallel if it is not alone."""
    import ray.train.torch

    return ray.train.torch.get_device(), ray.train.torch.prepare_model


def _alone(module: nn.Module) -> nn.Module:
    return module


def lr_factor(train: Train, step: int, steps_per_epoch: int) -> float:
    """The learning rate at a step, divided by `train.lr`: linear warm-up times the schedule."""
    warm_up = min(1.0, (step + 1) / (train.warmup_steps + 1))
    if train.schedule == "halve":  # the paper's
        epoch = step // steps_per_epoch
        return float(warm_up * 0.5 ** sum(epoch >= at for at in train.halve_at))
    if train.schedule == "cosine":
        total = train.epochs * steps_per_epoch
        after = max(0, step - train.warmup_steps) / max(1, total - train.warmup_steps)
        return float(warm_up * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, after))).item()) / 2)
    return warm_up
