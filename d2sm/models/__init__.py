"""The networks, one paper a file."""

from __future__ import annotations

from d2sm.models.cbdnet import CBDNet
from d2sm.models.espnet import ESPNet
from d2sm.models.ffdnet import FFDNet
from d2sm.models.sadnet import SADNet

__all__ = ["CBDNet", "ESPNet", "FFDNet", "SADNet"]
