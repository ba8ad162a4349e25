"""Any size in, for networks that halve it: the check and the padding that all backbones begin with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padded(noisy: Tensor, stride: int, network: str) -> Tensor:
    """(B, 3, H, W) -> the same, its last row and column repeated until `stride` divides H and W.

    Raises:
        ValueError: on another shape; names the network.
    """
    if noisy.dim() != 4 or noisy.shape[1] != 3:
        raise ValueError(f"{network}: noisy has shape {tuple(noisy.shape)}: needs (B, 3, H, W)")
    height, width = noisy.shape[-2:]
    return F.pad(noisy, (0, -width % stride, 0, -height % stride), mode="replicate")
