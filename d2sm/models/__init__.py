"""The networks, one paper a file."""

from __future__ import annotations

from d2sm.models.espnet import ESPNet
from d2sm.models.ffdnet import FFDNet

__all__ = ["ESPNet", "FFDNet"]
