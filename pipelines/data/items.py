"""The pixels of an item, wherever they are stored: in image files, or in the shards of a prepared data set.

An item is a row of the index (`pipelines.data.index`): a photograph with its label map or its noisy partner, where it
has them. Training, evaluation, pictures, figures and reports all read items here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.data import shards
from pipelines.data.images import Pixels, read_labels, read_rgb
from pipelines.data.labels import CITYSCAPES


class Photograph(NamedTuple):
    """The pixels of an item.

    Attributes:
        clean: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 train ids, 255 to be ignored; None if the item has no label map.
        noisy: (H, W, 3) uint8 RGB, the photographed partner of `clean`; None if the item is no pair.
    """

    clean: Pixels
    label: Pixels | None = None
    noisy: Pixels | None = None


def read(item: Mapping[str, Any], *, labels: bool = True, label_set: str = CITYSCAPES) -> Photograph:
    """Read an item's images as a whole.

    Args:
        item: a row of the index.
        labels: False leaves the label map out, which saves its decoding.
        label_set: what the label maps hold, see `labels.label_set`.

    Raises:
        ImageError: a file is missing, damaged, or not what its column says.
        DataError: a shard is missing or damaged.
    """

    def whole(column: shards.Column) -> Pixels | None:
        if item[column] is None:
            return None
        image = open_image(item, column, label_set)
        return image[:, :].copy() if isinstance(image, shards.StoredImage) else image

    clean = whole("image")
    assert clean is not None  # every item has one
    return Photograph(clean, whole("label") if labels else None, whole("noisy"))


def open_image(
    item: Mapping[str, Any], column: shards.Column, label_set: str = CITYSCAPES
) -> Pixels | shards.StoredImage:
    """One image of an item, to cut crops from: of a stored image only the rows of a crop are read, a file is decoded.

    Args:
        item: a row of the index.
        column: which image; the item must have it.
        label_set: as in `read`; stored label maps are train ids already.

    Raises:
        ImageError, DataError: as `read`.
    """
    where = item[column]
    stored = shards.open_stored(where)
    if stored is not None:
        return stored
    return read_labels(where, label_set) if column == "label" else read_rgb(where)
