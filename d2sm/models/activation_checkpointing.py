"""Activation checkpointing: trade compute for memory in a backbone's backward pass.

Activations within a checkpointed segment are not kept by the forward pass: the backward pass computes them again from
the segment's inputs, which are kept. This costs one more forward pass. It draws the same random numbers, so gradients
are the same bit for bit. What a forward pass changes, such as BatchNorm's running statistics, is changed twice a step:
`pipelines.networks.models.check` refuses segments with such buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")


class CheckpointedModule(nn.Module):
    """A module whose forward pass runs its segments through `checkpointed`.

    Attributes:
        checkpoint_activations: whether segments are checkpointed. Not part of the state; set on a whole network by the
            function `checkpoint_activations`.
    """

    checkpoint_activations: bool = False

    @property
    def is_checkpointing(self) -> bool:
        """Whether a segment run now is checkpointed: only where a graph is built."""
        return self.checkpoint_activations and torch.is_grad_enabled()

    def checkpointed(self, segment: Callable[..., Output], *inputs: Any) -> Output:
        """segment(*inputs), without keeping the activations within while `is_checkpointing`."""
        if not self.is_checkpointing:
            return segment(*inputs)
        return checkpoint(segment, *inputs, use_reentrant=False)  # with the same random numbers, for dropout


def checkpoint_activations(network: nn.Module) -> None:
    """Switch activation checkpointing on, in every part of a network that supports it.

    Raises:
        ValueError: no part of the network does.
    """
    modules = [module for module in network.modules() if isinstance(module, CheckpointedModule)]
    if not modules:
        raise ValueError(
            f"{type(network).__name__}: does not support activation checkpointing: none of its modules is a "
            "CheckpointedModule"
        )
    for module in modules:
        module.checkpoint_activations = True
