"""Networks for tests."""

from __future__ import annotations

from typing import TypeVar

import torch
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


def averaging(network: Network) -> Network:
    """The network with every convolution a mean over its inputs, in float64: no path is lost to a ReLU or cancels."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.weight.fill_(1 / module.weight[0].numel())
                if module.bias is not None:
                    module.bias.zero_()
    return network.double()


def reach(network: nn.Module, *, width: int, column: int) -> int:
    """Number of columns, from first to last, of a strip of pixels that its output at a column depends on."""
    noisy = (1e-3 * torch.rand(1, 3, 8, width, dtype=torch.float64)).requires_grad_()
    network(noisy)[0, :, 4, column].sum().backward()
    assert noisy.grad is not None
    touched = noisy.grad.abs().sum((0, 1, 2)).nonzero()[:, 0]
    return int(touched.max() - touched.min()) + 1
