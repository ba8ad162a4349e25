"""The list of degradations: how a clean image becomes the noisy one that a network restores.

A degradation is a function

    degrade(clean, *, sigma, seeds) -> noisy       clean, noisy: (B, 3, H, W); sigma: (B,) in units of 0..255; B seeds

whose randomness is a function of each image's seed alone, so that an image is degraded alike in every batch, on every
worker and after a restart. A new one is a file with such a function and an entry in `DEGRADATIONS`. Importing this
module loads no torch: a function is imported when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Degrade(Protocol):
    """The call of a degradation."""

    def __call__(self, clean: Tensor, *, sigma: Tensor, seeds: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class Degradation:
    """An entry of the list.

    Attributes:
        name: by which it is chosen.
        target: its function, as "module:function".
        summary: a few words for help texts.
    """

    name: str
    target: str
    summary: str

    def load(self) -> Degrade:
        """Import the function."""
        return cast("Degrade", resolve_name(self.target))


DEGRADATIONS: dict[str, Degradation] = {
    degradation.name: degradation
    for degradation in (
        # name, function, summary
        Degradation("gaussian", "d2sm.noise:add_noise", "additive Gaussian noise, not clipped"),
    )
}
