"""Any network that maps images to images of their size, as a `Denoiser`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from d2sm import probing
from d2sm.models.base import Denoiser
from d2sm.tiles import round_up

_INSIDE = "network."


class WrappedNetwork(Denoiser):
    """A network that knows nothing of this project, with the contract of `Denoiser`.

    What the network does not state as an attribute of its own is found out: `blind` from the arguments of its forward;
    the multiple to which images are padded by trying; `receptive_field`, `stride` and `bytes_per_pixel` by measuring a
    copy when they are first asked for. A `receptive_field` of None: not known, so images are restored whole.

    Its weights have the names that they have in the network itself, so a file of either fits the other. It keeps the
    memory layout that the network was made with, because networks may rely on it (`view`).

    Args:
        network: (noisy) -> restored, or (noisy, sigma) -> restored; noisy and restored (B, 3, H, W), sigma (B,) in
            units of 0..255. It may have the attributes of `Denoiser`, which are then believed; a `stride` without a
            `receptive_field` is only the multiple to which images are padded, and that of windows is still measured.
        blind: whether it is called with (noisy) alone; None: its own `blind`, else as its forward takes arguments.
        multiple: of the sides that the network takes, in pixels; None: its own `stride`, else what is found by trying.
        minimum: smallest side that it takes.
        tiles: False: it is never restored in tiles.

    Raises:
        ValueError: it takes other arguments, has no parameters, or does not keep the size of images. One line.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        blind: bool | None = None,
        multiple: int | None = None,
        minimum: int = 0,
        tiles: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.minimum, self.tiles = network, minimum, tiles
        if next(network.parameters(), None) is None:
            raise ValueError("it has no parameters: there is nothing to train")
        if blind is None:
            blind = getattr(network, "blind", None)
        self.blind = blind if isinstance(blind, bool) else not probing.takes_sigma(network)
        self.multiple = (
            multiple or _stated(network, "stride") or probing.size_multiple(network, self._run, minimum=minimum)
        )
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def label(self) -> str:
        return type(self.network).__name__

    @cached_property
    def receptive_field(self) -> int | None:  # type: ignore[override]  # None: not known
        """As in `Denoiser`; None: not known."""
        return self._measured[0] if self._measured else None

    @cached_property
    def stride(self) -> int:  # type: ignore[override]  # measured when it is first asked for
        """As in `Denoiser`."""
        return self._measured[1] if self._measured else self.multiple

    @cached_property
    def bytes_per_pixel(self) -> int | None:  # type: ignore[override]  # None: not known
        """As in `Denoiser`; None: not known."""
        stated = _stated(self.network, "bytes_per_pixel")
        return stated or probing.bytes_per_pixel(self.network, self._run, self.multiple, self.minimum)

    @cached_property
    def _measured(self) -> tuple[int, int] | None:
        if not self.tiles:
            return None
        stated, stride = _stated(self.network, "receptive_field"), _stated(self.network, "stride")
        if stated:
            return stated, stride or self.multiple
        return probing.receptive_field(self.network, self._run, self.multiple, self.minimum)

    def call(self, network: nn.Module, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        """Restore a batch with `network`, which is this one's or a copy of it; sigma is (B,), None if blind."""
        restored: Tensor = network(noisy) if sigma is None else network(noisy, sigma)
        return restored

    def restore_padded(self, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        # Of the images' type, as in `_run`: a network in half precision may not cast it itself.
        return self.call(self.network, noisy.contiguous(), None if sigma is None else sigma.to(noisy.dtype))

    def pad(self, noisy: Tensor) -> Tensor:
        self._check_shape(noisy)
        below, right = (round_up(max(side, self.minimum), self.multiple) - side for side in noisy.shape[-2:])
        return F.pad(noisy, (0, right, 0, below), mode="replicate")

    def to(self, *args: Any, **kwargs: Any) -> WrappedNetwork:
        """As of any module, but the order of a weight's numbers in memory (`memory_format`) stays."""
        kwargs.pop("memory_format", None)
        return super().to(*args, **kwargs)

    def _run(self, network: nn.Module, noisy: Tensor) -> Tensor:
        """The network as probing runs it: at a noise level of 25 where it takes one."""
        return self.call(network, noisy, None if self.blind else noisy.new_full((len(noisy),), 25.0))


def _stated(network: nn.Module, name: str) -> int | None:
    value = getattr(network, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    inside = prefix + _INSIDE
    _rename(state, {name: prefix + name.removeprefix(inside) for name in state if name.startswith(inside)})


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    inside = prefix + _INSIDE
    _rename(state, {name: inside + name.removeprefix(prefix) for name in state if name.startswith(prefix)})


def _rename(state: dict[str, Any], names: Mapping[str, str]) -> None:
    """All at once: a network may have a part called network, so that a new name is another's old one."""
    state.update({new: state.pop(old) for old, new in names.items()})
