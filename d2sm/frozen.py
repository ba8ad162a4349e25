"""Frozen networks, which the losses look through: gradient flows to the images, none to the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class FrozenNetwork(nn.Module):
    """A module that treats images independently, so a batch can be processed in chunks to bound memory.

    It stays in eval mode. Subclasses freeze their parameters and implement `forward_chunk`.

    Attributes:
        chunk_size: images in a chunk; None: the whole batch at once. With more than one chunk, activations are not kept
            for the backward pass but computed again, chunk by chunk: one more forward pass, the same outputs and
            gradients up to rounding.
    """

    chunk_size: int | None = None

    def forward(self, images: Tensor) -> Any:
        """Images (B, 3, H, W) to maps (B, ...): a tensor, or a list of tensors."""
        if self.chunk_size is None or len(images) <= self.chunk_size:
            return self.forward_chunk(images)
        run = self.forward_chunk
        if torch.is_grad_enabled() and images.requires_grad:
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        outputs = [run(chunk) for chunk in images.split(self.chunk_size)]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return [torch.cat(maps) for maps in zip(*outputs, strict=True)]

    def forward_chunk(self, images: Tensor) -> Any:
        """The maps of one chunk of images."""
        raise NotImplementedError

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile `forward_chunk`, in place; `options` are those of torch.compile."""
        self.forward_chunk = torch.compile(self.forward_chunk, **options)  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled: it cannot be pickled, and would run this network within a copy of it."""
        state = cast(dict[str, Any], super().__getstate__())
        return {name: value for name, value in state.items() if name != "forward_chunk"}

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever `mode` is: a parent's .train() changes neither BatchNorm nor dropout here."""
        return super().train(False)


class FrozenWrapper(FrozenNetwork):
    """A given network, frozen, in eval mode and left out of `state_dict()`.

    The `state_dict()` of any module that holds this one has none of the network's weights and loads strictly without
    them: they are read from their own file whenever the network is built.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        exclude_from_state_dict(self, "network")

    def forward_chunk(self, images: Tensor) -> Any:
        with unchanged(images, type(self.network).__name__):
            return self.network(images)


@contextmanager
def unchanged(images: Tensor, name: str) -> Iterator[None]:
    """Make sure that a network does not write into its images, which other terms and measures look at too.

    Args:
        name: of the network, for the message.

    Raises:
        ValueError: it does. One line.
    """
    # Inference tensors have no count of the operations in place; a compiled network has passed this check before.
    if images.is_inference() or torch.compiler.is_compiling():
        yield
        return
    before = images._version
    yield
    if images._version != before:
        raise ValueError(
            f"{name} changes its images in place, which others use after it; let it work on a copy (image - mean "
            "instead of image.sub_(mean))"
        )


def own_networks(objective: nn.Module) -> Iterator[FrozenNetwork]:
    """The frozen networks within an objective, but for those in a bare `FrozenWrapper`, such as a segmenter, which may
    be anybody's code: torch may be unable to compile or capture that.
    """
    for module in objective.modules():
        if isinstance(module, FrozenNetwork) and type(module) is not FrozenWrapper:
            yield module


def exclude_from_state_dict(module: nn.Module, child: str) -> None:
    """Leave a child's weights out of the module's `state_dict()`; loading stays strict about everything else."""
    # Partials instead of closures: a module must survive pickling.
    module.register_state_dict_post_hook(partial(_drop_keys, child=child))
    module.register_load_state_dict_pre_hook(partial(_add_own_values, child=child))


def _drop_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any, child: str) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}{child}.")]:
        del state[key]


def _add_own_values(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any, child: str) -> None:
    for key, value in module.get_submodule(child).state_dict().items():
        state.setdefault(f"{prefix}{child}.{key}", value)
