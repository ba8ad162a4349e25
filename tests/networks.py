"""Networks for tests."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def stirred(network: Network) -> Network:
    """The network with every weight drawn anew: a fresh FFDNet repeats its input, which would hide things."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.01)
    return network
