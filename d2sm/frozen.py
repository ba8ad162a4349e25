"""A network that judges and is not trained."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Judge(nn.Module):
    """What looks at every image by itself, and so can look at a few at a time, for the memory of a few.

    Attributes:
        at_once: images at a time; None: all. With fewer than there are, the backward pass computes the activations of
            each few again: a forward pass more, and the same maps and gradient but for rounding.
    """

    at_once: int | None = None

    def forward(self, images: Tensor) -> Any:
        """Maps (B, ...) of images (B, 3, H, W): a tensor, or a list of them."""
        if self.at_once is None or len(images) <= self.at_once:
            return self.judged(images)
        look = self.judged
        if torch.is_grad_enabled() and images.requires_grad:
            look = partial(checkpoint, look, use_reentrant=False, preserve_rng_state=False)
        made = [look(few) for few in images.split(self.at_once)]
        return torch.cat(made) if isinstance(made[0], Tensor) else [torch.cat(maps) for maps in zip(*made, strict=True)]

    def judged(self, images: Tensor) -> Any:
        """The maps of these images, all at once."""
        raise NotImplementedError


class Frozen(Judge):
    """A network in eval mode whatever its parent's mode, without gradient to its weights, and outside of the state.

    Gradient flows to its input. The `state_dict()` of whatever holds it has none of its weights, and loads strictly
    without them: they come from their own file, at every start.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        unsaved(self, "network")

    def judged(self, images: Tensor) -> Any:
        return self.network(images)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever `mode` is: a parent's .train() leaves BatchNorm and dropout alone."""
        return super().train(False)


def unsaved(module: nn.Module, child: str) -> None:
    """Keep a child's weights out of the module's `state_dict()`; loading is strict all the same."""
    # No closures: a module must survive pickling.
    module.register_state_dict_post_hook(partial(_leave_out, child=child))
    module.register_load_state_dict_pre_hook(partial(_put_back, child=child))


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any, child: str) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}{child}.")]:
        del state[key]


def _put_back(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any, child: str) -> None:
    for key, value in module.get_submodule(child).state_dict().items():
        state.setdefault(f"{prefix}{child}.{key}", value)
