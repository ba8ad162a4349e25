"""The names of Phi's layers in `loss.features`. Loads no torch.

vgg19.conv5_4                          a network with a short name, and its layer: `d2sm.feature_networks`
timm:resnet50.layer3                   any network of timm, likewise torchvision: `d2sm.libraries`
segmenter:espnet-camvid.encoder.b3     a segmenter, written as in evaluate.segmenter, and one of its submodules
segmenter:models:/name@alias           a registered segmenter; its output is the map, since its parts have no names
module:callable                        a network of one's own, whose output is the map
module:callable.layer                  a submodule of it
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pipelines.callables import is_imported

_LIBRARIES = ("timm", "torchvision")
_SEGMENTER, _REGISTERED = "segmenter:", "models:/"


class PhiName(NamedTuple):
    """A layer of a network.

    Attributes:
        kind: known: by `d2sm.features`; segmenter; code: imported Python.
        network: as the kind's own functions take it: "timm:resnet50.layer3" (known, with its layer), "espnet-camvid",
            "module:callable".
        layer: dotted name of a submodule; "": the output of the network, or (known) part of `network`.
    """

    kind: Literal["known", "segmenter", "code"]
    network: str
    layer: str

    @property
    def imports(self) -> bool:
        """Whether it names Python to import."""
        return self.kind == "code" or (self.kind == "segmenter" and is_imported(self.network))


def parse(name: str) -> PhiName:
    """The parts of a name. Whether there are such a network and layer is not known here."""
    if name.startswith(_SEGMENTER):
        rest = name.removeprefix(_SEGMENTER)
        return PhiName("segmenter", rest, "") if rest.startswith(_REGISTERED) else PhiName("segmenter", *_split(rest))
    if is_imported(name) and name.partition(":")[0] not in _LIBRARIES:
        return PhiName("code", *_split(name))
    return PhiName("known", name, "")


def _split(name: str) -> tuple[str, str]:
    """Network and layer, where the network is a word or "module:callable"."""
    module, colon, rest = name.rpartition(":")
    word, _, layer = rest.partition(".")
    return f"{module}{colon}{word}", layer
