"""CUDA graphs of the network and of the losses' frozen networks (`train.cuda_graphs`): a step of few launches.

A small step is bound by the time in which the host launches its kernels, one by one. A CUDA graph holds the kernels of
a pass, forward or backward, and is launched as one; they are the same kernels on the same numbers, so the results are
those without graphs. Each pass is captured at its first call, when the shape of a worker's share is known; it does not
change while the worker lives. What else a step does (matching, L1, optimizer, EMA) is launched as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.frozen import own_networks
from pipelines.config import ConfigError
from pipelines.networks.models import TrainingModule
from pipelines.text import one_line

Pass = Callable[..., Any]


def use_graphs(module: TrainingModule, objective: nn.Module) -> None:
    """Let the network and the objective's frozen networks run as CUDA graphs, in place.

    Args:
        module: before DistributedDataParallel wraps it: its own hooks stay outside of the graphs.
        objective: with its terms; of its networks those of `own_networks`.
    """
    if module.estimate:
        module.forward = Graphed(module.forward, module)  # type: ignore[method-assign, assignment]
    else:
        module.network.forward = Graphed(module.network.forward, module.network)  # type: ignore[method-assign, assignment]
    for part in own_networks(objective):
        part.forward_chunk = Graphed(part.forward_chunk, None)  # type: ignore[method-assign, assignment]


class Graphed:
    """A function of tensors, captured once for each kind of call.

    Args:
        run: gives a tensor, or a tuple or list of tensors.
        trained: the module whose parameters it trains; None: gradient flows to its arguments alone. While the module is
            in eval mode `run` is called as it is.
    """

    def __init__(self, run: Pass, trained: nn.Module | None) -> None:
        self.run, self.trained = run, trained
        self.captured: dict[Any, Pass] = {}

    def __call__(self, *given: Tensor) -> Any:
        if self.trained is not None and not (self.trained.training and torch.is_grad_enabled()):
            return self.run(*given)
        key = kind_of_call(given)
        if key not in self.captured:
            self.captured[key] = self._capture(given)
        outputs = self.captured[key](*given)
        if torch.is_grad_enabled():
            return outputs
        # They lie in the graph's own memory, and a second image of the same kind may be asked for before the first is
        # used.
        return outputs.clone() if isinstance(outputs, Tensor) else [output.clone() for output in outputs]

    def _capture(self, given: tuple[Tensor, ...]) -> Pass:
        samples = tuple(
            torch.empty_like(tensor).copy_(tensor.detach()).requires_grad_(needs_gradient(tensor)) for tensor in given
        )
        one_pass = _Callable(self.run, self.trained)
        buffers = [(buffer, buffer.clone()) for buffer in one_pass.buffers()]
        device = given[0].device
        half, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        try:
            # Autocast must not keep bf16 copies of weights that were made in a graph: they would be those of that step.
            # The passes that warm up must not move the random numbers of this step's dropout.
            with (
                torch.autocast("cuda", half, enabled=enabled, cache_enabled=False),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
            ):
                graphed: Any = torch.cuda.make_graphed_callables(one_pass, samples)  # after three passes to warm up
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"train.cuda_graphs=true: a pass cannot be captured here ({one_line(error, 200)}); set "
                "train.cuda_graphs=false"
            ) from error
        for buffer, before in buffers:  # such as running means, which the warm-up moved
            buffer.copy_(before)
        return graphed  # type: ignore[no-any-return]


class _Callable(nn.Module):
    """A pass as `make_graphed_callables` takes it: a module that has the parameters that the pass trains."""

    def __init__(self, run: Pass, trained: nn.Module | None) -> None:
        super().__init__()
        self.run, self.trained = run, trained

    def forward(self, *given: Tensor) -> Any:
        return self.run(*given)


def needs_gradient(tensor: Tensor) -> bool:
    """Whether gradient flows to it in this call."""
    return torch.is_grad_enabled() and tensor.requires_grad


def kind_of_call(given: tuple[Tensor, ...]) -> Any:
    """What a graph is captured for: shapes, layouts and types, where gradient flows to, and autocast."""
    autocast = torch.is_autocast_enabled(given[0].device.type) and torch.get_autocast_dtype(given[0].device.type)
    return autocast, *((tensor.shape, tensor.stride(), tensor.dtype, needs_gradient(tensor)) for tensor in given)
