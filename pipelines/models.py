"""From the configuration's model section to a network."""

from __future__ import annotations

from torch import nn

from d2sm.models import FFDNet
from pipelines.config import Model


def build(model: Model) -> nn.Module:
    """The backbone, freshly initialised by torch's current seed.

    A backbone has the attributes `blind` (takes no sigma), `stride` and `receptive_field`, and pads and crops inside
    `forward`, so that any size works. A new one: a file in `d2sm/models`, a line here, a name in `config.Model`.
    """
    return FFDNet(width=model.width, depth=model.depth)
