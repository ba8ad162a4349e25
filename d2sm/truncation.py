"""Any network up to some of its layers: nothing after the last of them is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Layer(NamedTuple):
    """A layer whose output is a map: its name, the pixels between neighbouring cells of the map, and its channels."""

    name: str
    stride: int
    channels: int


class Truncated(nn.Module):
    """A network up to the last of some of its submodules, called as the network is.

    The forward pass of the network runs as it stands, with whatever it does between its submodules, and is left when
    the last of the layers has its output. Parts of the network that run after it cost no time.

    Args:
        network: (B, 3, H, W) -> anything.
        layers: dotted names of submodules, in the order in which they run; each runs once (see `truncate`).
        names: of the layers for messages and for `Features`; none: the same.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], names: Sequence[str] = ()) -> None:
        super().__init__()
        self.network, self.layers, self.names = network, tuple(layers), tuple(names or layers)

    def forward(self, images: Tensor) -> Tensor:
        """The output of the last layer."""
        return self.maps(images)[-1]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The outputs of all layers, in their order."""
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Any) -> Any:
            found[name] = output
            if name == self.layers[-1]:
                raise _Done
            # The network goes on with a copy: what follows may overwrite its input in place.
            return output.clone() if isinstance(output, Tensor) else None

        with _hooks(self.network, self.layers, keep), suppress(_Done):
            self.network(images)
        return [found[name] for name in self.layers]


class _Done(Exception):
    """Leaves a forward pass."""


def truncate(network: nn.Module, layers: Sequence[str], *, name: str, image: Tensor, inside: str = "") -> Truncated:
    """The network up to the last of these layers, after a look at how it runs.

    Args:
        network: in eval mode, on the device of `image`; it is not copied.
        layers: dotted names of submodules, in any order.
        name: of the network, for messages.
        image: (1, 3, H, W), what the network is run on.
        inside: the submodule within which the names are looked up; "" is the network itself.

    Raises:
        ValueError: a layer that there is not, that does not run, or that runs more than once in a forward pass; or the
            network fails. One line.
    """
    paths = {f"{inside}.{layer}" if inside else layer: layer for layer in layers}
    within = network.get_submodule(inside)
    known = [path for path, _ in within.named_modules() if path]
    for layer in layers:
        if layer not in known:
            top = [child for child, _ in within.named_children()]
            raise ValueError(f"features: {name} has no layer {layer!r}{_suggestion(layer, known, top)}")
    order: list[str] = []
    failure: Exception | None = None
    with _hooks(network, list(paths), lambda path, output: order.append(path)), torch.no_grad():
        try:
            network(image)
        except Exception as error:  # anybody's network may raise anything; parts after the layers may fail
            failure = error
    counts = Counter(order)
    for path, layer in paths.items():
        if not counts[path] and failure is not None:
            reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
            raise ValueError(
                f"features: {name} fails on an image of {tuple(image.shape)}: {reason}; give a network for any size"
            )
        if counts[path] != 1:
            ran = "does not run as a module" if not counts[path] else f"runs {counts[path]} times"
            raise ValueError(f"features: layer {layer!r} of {name} {ran} in a forward pass; name one that runs once")
    return Truncated(network, list(counts), [paths[path] for path in counts])


def drop_unused(truncated: Truncated, image: Tensor) -> None:
    """Replace the network's direct children that do not run before the last layer, such as a classifier's head."""
    ran: set[int] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, _: ran.add(id(module)))  # returns None: changes nothing
        for module in truncated.network.modules()
    ]
    try:
        with torch.no_grad():
            truncated(image)
    finally:
        for handle in handles:
            handle.remove()
    for child, module in list(truncated.network.named_children()):
        if not any(id(part) in ran for part in module.modules()):
            setattr(truncated.network, child, nn.Identity())


def maps_of(network: nn.Module, small: Tensor, large: Tensor, *, inside: str = "") -> Iterator[Layer]:
    """The layers that run once and give a map with a stride, in the order in which they run.

    Args:
        small, large: two square images of which one has twice the side of the other.
    """
    of_small, of_large = _map_shapes(network, small), _map_shapes(network, large)
    prefix = f"{inside}." if inside else ""
    for path, shape in of_small.items():
        if path.startswith(prefix) and path in of_large:
            stride = stride_between(small.shape[-1], shape[2:], of_large[path][2:])
            if stride is not None:
                yield Layer(path.removeprefix(prefix), stride, shape[1])


def _map_shapes(network: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs (B, C, h, w) of the submodules that run once, as far as the network does not fail."""
    shapes: dict[str, tuple[int, ...]] = {}
    counts: Counter[str] = Counter()

    def look(path: str, output: Any) -> None:
        counts[path] += 1
        if isinstance(output, Tensor) and output.ndim == 4:
            shapes[path] = tuple(output.shape)

    paths = [path for path, _ in network.named_modules() if path]
    with _hooks(network, paths, look), torch.no_grad(), suppress(Exception):
        network(image)
    return {path: shape for path, shape in shapes.items() if counts[path] == 1}


def stride_between(pixels: int, small: Sequence[int], large: Sequence[int]) -> int | None:
    """The stride of maps of h x w cells, from those of two images of which one has `pixels` more a side; else None."""
    cells = [b - a for a, b in zip(small, large, strict=True)]
    return None if cells[0] < 1 or cells[0] != cells[1] or pixels % cells[0] else pixels // cells[0]


@contextmanager
def _hooks(network: nn.Module, paths: Sequence[str], tell: Callable[[str, Any], Any]) -> Iterator[None]:
    """Within the block, `tell(path, output)` is called after each of these submodules; its result replaces theirs."""
    modules: Mapping[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))

    def hook(module: nn.Module, inputs: Any, output: Any, *, path: str) -> Any:
        return tell(path, output)

    handles = [modules[path].register_forward_hook(partial(hook, path=path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _suggestion(layer: str, known: Sequence[str], top: Sequence[str]) -> str:
    close = get_close_matches(layer, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? It has {', '.join(top)}" if close else "; it has no layers"
