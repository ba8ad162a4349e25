"""Label sets: the classes of a data set, their names and colours, and what its label images hold for them.

`data.labels` names one: "cityscapes", "camvid", or a YAML file:

    classes:
      - {name: road, id: 7, colour: [128, 64, 128]}
      - {name: plants, id: [21, 22], colour: [107, 142, 35], like: vegetation}
    ignore: [0, 255]     # what else label images may hold; these pixels do not count
    images: ids          # ids: 8-bit grey; colours: RGB in the classes' colours, `ignore` then lists colours
    ending: _gtFine_labelIds.png

A train id is the index of a class in its set. `like` is the Cityscapes class that a published segmenter gives for it,
where the name is another. The same values are refused in every verb: an id or a colour that is neither a class's nor
ignored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from d2sm.label_names import CLASSES, COLOURS, LABEL_IDS
from pipelines import parsing
from pipelines.config import ConfigError
from pipelines.data.formats import ImageError
from pipelines.text import did_you_mean, one_line

if TYPE_CHECKING:
    from pipelines.config import Config

VOID = 255  # the train id of a pixel that does not count
CITYSCAPES = "cityscapes"
_MOST_CLASSES = 254
LAST_LABEL_ID = 34  # Cityscapes has 0 to 33; some of its derivatives give the license plate 34
_ENDINGS = {"ids": "_gtFine_labelIds.png", "colours": "_gtFine_color.png"}

Pixels = NDArray[np.uint8]
_Byte = Annotated[int, Field(ge=0, le=255)]
_Colour = tuple[_Byte, _Byte, _Byte]


class LabelError(ImageError):
    """A label map of another kind of labels: probably all of the data set's are, so it is no single bad image."""


@dataclass(frozen=True)
class LabelSet:
    """The classes of a data set.

    Attributes:
        name: as `data.labels` has it.
        classes: their names; a train id is an index here.
        colours: (classes, 3) uint8 RGB.
        known: the values that a label image may hold: ids, or colours as red * 65536 + green * 256 + blue, sorted.
        of_known: the train id of each of these.
        images: whether label images hold ids or colours.
        ending: of their names.
        like: for each class the Cityscapes class that a published segmenter gives for it.
    """

    name: str
    classes: tuple[str, ...]
    colours: Pixels
    known: NDArray[np.int64]
    of_known: Pixels
    images: Literal["ids", "colours"]
    ending: str
    like: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what decides about numbers: classes, values, kind of images; not the file's place."""
        what = [self.classes, self.known.tolist(), self.of_known.tolist(), self.images, self.like]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """How results name the set: a built-in one by its name, another one by its file's name and fingerprint."""
        return self.name if self.name in BUILT_IN else f"{Path(self.name).stem}-{self.fingerprint}"

    def train_ids(self, image: Pixels, path: Path) -> Pixels:
        """The train ids (H, W) of a label image: (H, W) ids, or (H, W, 3) colours.

        Args:
            path: of the image, for the message.

        Raises:
            LabelError: it holds a value that is neither a class's nor ignored.
        """
        values = image.astype(np.int64)
        if self.images == "colours":
            values = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
        places = np.minimum(np.searchsorted(self.known, values), len(self.known) - 1)
        strange = self.known[places] != values
        if strange.any():
            value = int(values[strange][0])
            what = f"the value {value}" if self.images == "ids" else f"the colour {_colour_of(value)}"
            raise LabelError(
                f"{path}: holds {what}, which is neither a class of data.labels={self.name} nor ignored there; "
                "give the label set of these images, or add it to the file"
            )
        found: Pixels = self.of_known[places]
        return found


class _Class(BaseModel):
    """A class in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=60)]
    id: _Byte | tuple[_Byte, ...] | None = None
    colour: _Colour
    like: str | None = None


class _File(BaseModel):
    """A file of a label set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: Annotated[tuple[_Class, ...], Field(min_length=1, max_length=_MOST_CLASSES)]
    ignore: tuple[_Byte, ...] | tuple[_Colour, ...] = ()
    images: Literal["ids", "colours"] = "ids"
    ending: str | None = None


def label_set(name: str) -> LabelSet:
    """A label set by its name or the path of its file.

    Raises:
        ConfigError: no such set, a file that cannot be read, or one that contradicts itself. One line.
    """
    if name in BUILT_IN:
        return _built_in(name)
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"data.labels={name}: needs {', '.join(BUILT_IN)} or a .yaml file{did_you_mean(name, BUILT_IN)}"
        )
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"data.labels={name}: {error.strerror}; give the path of the file") from None
    return _from_file(name, changed)


def of(config: Config) -> LabelSet:
    """The label set of a configuration. Raises ConfigError."""
    return label_set(config.data.labels)


@lru_cache(maxsize=16)
def _from_file(name: str, changed: int) -> LabelSet:
    remedy = "pipelines/README.md shows such a file"
    path = Path(name).expanduser()
    tree = parsing.read_yaml(path, source=f"data.labels={name}", error=ConfigError, remedy=remedy)
    found = parsing.shaped(tree, _File, source=f"data.labels={name}", error=ConfigError, remedy=remedy)
    return _checked(name, found)


def _checked(name: str, file: _File) -> LabelSet:
    def refuse(why: str) -> ConfigError:
        return ConfigError(f"data.labels={name}: {one_line(why)}")

    names = [each.name for each in file.classes]
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise refuse(f"the class {twice} is there twice; name every class once")
    values: dict[int, int] = {}
    for train_id, each in enumerate(file.classes):
        if each.like is not None and each.like not in CLASSES:
            hint = did_you_mean(each.like, CLASSES)
            raise refuse(f"class {each.name}: like: {each.like} is no class of Cityscapes{hint}")
        for value in _values(each, file.images):
            if values.get(value, train_id) != train_id:  # a class may list its own twice
                other = names[values[value]]
                raise refuse(f"classes {other} and {each.name} have the same {_shown(value, file.images)}")
            values[value] = train_id
        if not _values(each, file.images):
            raise refuse(f"class {each.name}: has no id, which label images of ids need")
    for ignored in file.ignore:
        if isinstance(ignored, int) != (file.images == "ids"):
            raise refuse(f"ignore: {ignored}: needs {'ids' if file.images == 'ids' else 'colours such as [0, 0, 0]'}")
        value = ignored if isinstance(ignored, int) else _packed(ignored)
        if values.get(value, VOID) != VOID:  # it may be listed twice
            raise refuse(f"ignore: {_shown(value, file.images)} is that of class {names[values[value]]}")
        values[value] = VOID
    ending = file.ending or _ENDINGS[file.images]
    if not ending.endswith(".png") or "/" in ending:
        raise refuse(f"ending: {ending}: needs the end of a file's name, such as {_ENDINGS['ids']}")
    return _made(
        name, tuple(names), np.array([each.colour for each in file.classes], np.uint8), values, file.images, ending,
        tuple(each.like or each.name for each in file.classes),
    )  # fmt: skip


def _made(
    name: str,
    classes: tuple[str, ...],
    colours: Pixels,
    values: dict[int, int],
    images: Literal["ids", "colours"],
    ending: str,
    like: tuple[str, ...],
) -> LabelSet:
    known = np.array(sorted(values), np.int64)
    of_known = np.array([values[value] for value in known.tolist()], np.uint8)
    return LabelSet(name, classes, colours, known, of_known, images, ending, like)


def _values(each: _Class, images: str) -> list[int]:
    if images == "colours":
        return [_packed(each.colour)]
    return [] if each.id is None else [each.id] if isinstance(each.id, int) else list(each.id)


def _packed(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _colour_of(value: int) -> list[int]:
    return [value >> 16, value >> 8 & 255, value & 255]


def _shown(value: int, images: str) -> str:
    return f"id {value}" if images == "ids" else f"colour {_colour_of(value)}"


# CamVid's 11 classes in the order of the published networks: label id in Cityscapes' files, and the class there.
_CAMVID = {
    "sky": (23, "sky"), "building": (11, "building"), "pole": (17, "pole"), "road": (7, "road"),
    "pavement": (8, "sidewalk"), "tree": (21, "vegetation"), "sign": (20, "traffic sign"), "fence": (13, "fence"),
    "car": (26, "car"), "pedestrian": (24, "person"), "bicyclist": (33, "bicycle"),
}  # fmt: skip
BUILT_IN = (CITYSCAPES, "camvid")


@lru_cache(maxsize=2)
def _built_in(name: str) -> LabelSet:
    if name == CITYSCAPES:
        values = {label_id: VOID for label_id in (*range(LAST_LABEL_ID + 1), 255)}
        values |= {label_id: train_id for train_id, label_id in enumerate(LABEL_IDS)}
        return _made(name, CLASSES, COLOURS, values, "ids", _ENDINGS["ids"], CLASSES)
    values = {0: VOID, 255: VOID} | {label_id: index for index, (label_id, _) in enumerate(_CAMVID.values())}
    like = tuple(known for _, known in _CAMVID.values())
    colours = COLOURS[[CLASSES.index(each) for each in like]]
    return _made(name, tuple(_CAMVID), colours, values, "ids", _ENDINGS["ids"], like)
