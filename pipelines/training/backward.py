"""Forward and backward passes in micro-batches: the gradient of the whole batch, in less memory.

Plain gradient accumulation adds up the losses of micro-batches. That does not work here: eq. (1) compares all samples
of a step with each other, so the loss of the batch is not a sum over micro-batches. Its gradient by the restored images
is known all the same, and from there on gradients add up:

    restored = network(noisy)                                 micro-batch by micro-batch, without a graph
    objective(restored, clean).backward()                     once, whole batch: gives d loss / d restored
    network(noisy).backward(gradient=d loss / d restored)     micro-batch by micro-batch, with a graph

The objective sees the whole batch once, so every term (labels, noise estimates, discriminator, queues) works unchanged.
Its frozen networks process the batch in chunks of the same size (`d2sm.frozen.FrozenNetwork`), because their
activations would otherwise dominate. The price is one more forward pass of the network, and one of Phi on the restored
crops.

Both passes of a micro-batch have to be of one function, or the gradient of the loss by the result of the first would be
applied to another result. So the second begins at the random numbers of the first, for dropout; a network that changes
from pass to pass, or mixes images as BatchNorm does, is refused before the run (`pipelines.networks.models.check`).

Caching gradients at Phi's features instead would save as much memory, but every other term would have to say how it
splits, and the discriminator's spectral norms would be updated once a micro-batch instead of once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2sm.frozen import FrozenNetwork
from pipelines.sections import Train

Outputs = tuple[Tensor, Tensor | None]  # restored (B, 3, H, W), and the estimate of the noise if the network gives one
MicroBatch = tuple[Tensor, Tensor]  # noisy (b, 3, H, W), sigma (b,)
RandomState = tuple[Tensor, Tensor | None]  # of torch's generator on the CPU, and of that on an accelerator


def split(noisy: Tensor, sigma: Tensor, count: int) -> list[MicroBatch]:
    """The batch in `count` micro-batches; fewer where it has fewer crops."""
    size = -(-len(noisy) // count)
    return list(zip(noisy.split(size), sigma.split(size), strict=True))


def autocast(device: torch.device, train: Train) -> torch.autocast:
    """bf16 matrix products and convolutions with `train.precision=bf16`, else no change."""
    return torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")


def forward(model: nn.Module, noisy: Tensor, sigma: Tensor, train: Train) -> Outputs:
    """The network's outputs, restored in float32 at least.

    Every call opens an autocast of its own: autocast caches the bf16 copies of the weights until it ends, and a copy
    cached by a pass without a graph would leave the next pass without gradients.

    Args:
        model: (noisy, sigma) -> `Outputs`; under DistributedDataParallel or not.
    """
    with autocast(noisy.device, train):
        restored, estimate = model(noisy, sigma)
    return restored.to(torch.promote_types(restored.dtype, torch.float32)), estimate


def forward_without_graph(
    model: nn.Module, micro_batches: Sequence[MicroBatch], train: Train
) -> tuple[Outputs, list[RandomState]]:
    """The outputs for the whole batch as leaves, which collect the gradient of the loss by them (`.grad`), and the
    random state at which the pass of each micro-batch began.
    """
    outputs, states = [], []
    with torch.no_grad():
        for noisy, sigma in micro_batches:
            states.append(_random_state(noisy.device))
            outputs.append(forward(model, noisy, sigma, train))
    restored = torch.cat([restored for restored, _ in outputs]).requires_grad_()
    estimates = [estimate for _, estimate in outputs if estimate is not None]
    return (restored, torch.cat(estimates).requires_grad_() if estimates else None), states


def backward_through_network(
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    outputs: Outputs,
    states: Sequence[RandomState],
    train: Train,
) -> None:
    """Add the gradient of the loss to the network's parameters, from its gradient by the outputs.

    DistributedDataParallel averages over the ranks once, with the last micro-batch, what all have accumulated.

    Args:
        outputs, states: from `forward_without_graph`, after `backward` of the loss. The random state afterwards is the
            one before.
    """
    size, device = len(micro_batches[0][0]), micro_batches[0][0].device
    after = _random_state(device)
    gradients = [
        (torch.zeros_like(output) if output.grad is None else output.grad).split(size)
        for output in outputs
        if output is not None
    ]
    for index, (noisy, sigma) in enumerate(micro_batches):
        _set_random_state(states[index], device)
        with nullcontext() if index == len(micro_batches) - 1 else _no_sync(model):
            again = [output for output in forward(model, noisy, sigma, train) if output is not None]
            torch.autograd.backward(again, [gradient[index] for gradient in gradients])
    _set_random_state(after, device)


def limit_chunks(objective: nn.Module, size: int) -> None:
    """Let the objective's frozen networks process at most `size` images at a time."""
    for module in objective.modules():
        if isinstance(module, FrozenNetwork):
            module.chunk_size = size


def _no_sync(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _random_state(device: torch.device) -> RandomState:
    """The host keeps the state of an accelerator's generator too, so nothing here waits for the device."""
    if device.type in ("cpu", "meta"):  # the meta device has no generator
        return torch.get_rng_state(), None
    on_device = torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def _set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
