"""The regions that classes take in a crop, and the means of feature maps over them: samples of `D2SMLoss`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2sm.images import IGNORED


def largest_regions(labels: Tensor, *, count: int) -> Tensor:
    """Where the classes with the most pixels are in each image.

    Args:
        labels: (B, H, W) integer train ids, 0..255; pixels of 255 belong to no region.
        count: r, regions of an image.

    Returns:
        (B, r, H, W) float32 of 0 and 1, largest class first, the lower id first among equals. An image with fewer
        classes has its largest one again in the places that are left; one without any label has all its pixels there.
    """
    flat = labels.long().flatten(1)
    sizes = flat.new_zeros(len(flat), 256).scatter_add_(1, flat, torch.ones_like(flat))
    sizes[:, IGNORED] = 0
    sizes, ids = sizes.sort(dim=1, descending=True, stable=True)
    ids = torch.where(sizes > 0, ids, ids[:, :1])[:, :count]
    regions = labels[:, None] == ids[:, :, None, None]
    return (regions | (sizes[:, :1, None, None] == 0)).float()


def means(maps: Tensor, regions: Tensor) -> Tensor:
    """Means of feature maps over regions. A cell counts by the share of its pixels that lies in the region.

    Args:
        maps: (B, C, h, w).
        regions: (B, r, H, W) of 0 and 1, none of them empty.

    Returns:
        (B*r, C) in the precision of the maps, float32 at least; image after image, region by region.
    """
    height, width = maps.shape[2:]
    shares = F.adaptive_avg_pool2d(regions, (height, width)).flatten(2)
    rows = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2).transpose(1, 2)
    with torch.autocast(maps.device.type, enabled=False):
        sums = shares.to(rows.dtype) @ rows
    return (sums / shares.sum(2, keepdim=True)).flatten(0, 1)
