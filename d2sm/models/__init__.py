"""The networks, one paper a file, and the list of the backbones.

A new backbone is one file here, with a subclass of `Denoiser`, and one entry in `BACKBONES`; a network of somebody
else's becomes a `Denoiser` in `WrappedNetwork`. Importing this module loads no torch: a class is imported when it is
first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from d2sm.models.base import Denoiser
    from d2sm.models.cbdnet import CBDNet
    from d2sm.models.espnet import ESPNet
    from d2sm.models.ffdnet import FFDNet
    from d2sm.models.sadnet import SADNet
    from d2sm.models.wrapped import WrappedNetwork

__all__ = ["BACKBONES", "Backbone", "CBDNet", "Denoiser", "ESPNet", "FFDNet", "SADNet", "WrappedNetwork"]


@dataclass(frozen=True)
class Backbone:
    """An entry of the list: what a configuration must know of a backbone before it is built.

    Attributes:
        name: by which a configuration chooses it (`model.name`).
        target: its class, as "module:class".
        summary: a few words for help texts.
        blind: whether it needs no sigma.
        options: arguments of its constructor that a configuration may set (`model.<option>`).
        estimates_noise: whether it also has `with_estimate`, which gives an estimate of the noise beside the restored
            image, for the objectives that need one.
    """

    name: str
    target: str
    summary: str
    blind: bool = False
    options: tuple[str, ...] = ()
    estimates_noise: bool = False

    def load(self) -> type[Denoiser]:
        """Import the class."""
        return cast("type[Denoiser]", resolve_name(self.target))


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone("ffdnet", "d2sm.models.ffdnet:FFDNet", "needs sigma", options=("width", "depth")),
        Backbone("cbdnet", "d2sm.models.cbdnet:CBDNet", "blind, estimates the noise", blind=True, estimates_noise=True),
        Backbone("sadnet", "d2sm.models.sadnet:SADNet", "blind", blind=True),
    )
}

_EXPORTS = {
    "Denoiser": "d2sm.models.base:Denoiser",
    "ESPNet": "d2sm.models.espnet:ESPNet",
    "WrappedNetwork": "d2sm.models.wrapped:WrappedNetwork",
    **{backbone.target.partition(":")[2]: backbone.target for backbone in BACKBONES.values()},
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return resolve_name(_EXPORTS[name])
    raise AttributeError(f"module 'd2sm.models' has no attribute {name!r}")
