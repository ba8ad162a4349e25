"""For activations that do not fit: the parts of a network forget theirs, and the backward pass makes them anew.

What lies within a part is kept for its own backward pass only; what passes from part to part is kept as before. It
costs one forward pass more. Nothing here is drawn at random, so the gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Made = TypeVar("Made")


class Forgetful(nn.Module):
    """A module that runs its parts by `part`.

    Attributes:
        recompute: whether they forget what lies within. Set for a whole network by `recompute`. No part of the state.
    """

    recompute: bool = False

    @property
    def forgets(self) -> bool:
        """Whether a part that is run now forgets."""
        return self.recompute and torch.is_grad_enabled()

    def part(self, run: Callable[..., Made], *inputs: Any) -> Made:
        """run(*inputs), without keeping what lies within where `recompute` is set and a graph is made."""
        if not self.forgets:
            return run(*inputs)
        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


def recompute(network: nn.Module) -> None:
    """Let every part of a network forget.

    Raises:
        ValueError: on a network that has no such parts.
    """
    forgetful = [module for module in network.modules() if isinstance(module, Forgetful)]
    if not forgetful:
        raise ValueError(f"{type(network).__name__}: has no parts that could be computed again; see {__name__}")
    for module in forgetful:
        module.recompute = True
