"""The files of a data set on disk, by layout: Cityscapes as published, a folder of images, or noisy/clean pairs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.data.finding import ENDINGS, is_photograph, walk
from pipelines.data.held_out import TRAIN, VAL
from pipelines.data.images import DataError, Kind
from pipelines.data.labels import LabelSet
from pipelines.text import did_you_mean, listed, more

Layout = Literal["cityscapes", "folder", "pairs"]

IMAGE = "_leftImg8bit.png"
_SPLITS = {"train", "val", "test"}
_ALSO_SPLITS = {"training", "valid", "validation", "testing", "dev", "eval", "evaluation"}
_ANY = " ".join(f"*{ending}" for ending in ENDINGS)


class ItemFiles(NamedTuple):
    """The files of an item, before they are opened.

    Attributes:
        name: of the item.
        image: the clean photograph.
        label: its label map.
        noisy: its noisy partner.
        scene: name of the photograph, where several items are pairs of one; "": that of the item.
        label_kind: what its label map must hold.
    """

    name: str
    image: Path
    label: Path | None = None
    noisy: Path | None = None
    scene: str = ""
    label_kind: Kind = "labels"

    def files(self) -> Iterator[tuple[Path, Kind]]:
        """Each file with what it must hold."""
        yield self.image, "rgb"
        if self.label:
            yield self.label, self.label_kind
        if self.noisy:
            yield self.noisy, "rgb"


class Split(NamedTuple):
    """What a layout finds of a split.

    Attributes:
        items: its items.
        left_out: the photographs whose names the layout has no place for.
        undivided: whether the root has no splits; `items` are then those of all splits together.
    """

    items: list[ItemFiles]
    left_out: list[Path]
    undivided: bool = False


def cityscapes(root: Path, split: str, labels: str, known: LabelSet) -> Split:
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png with labels in gtFine. labels: required, optional or ignore."""
    top = root / "leftImg8bit"
    if not top.is_dir():
        raise _wrong_layout(root, "cityscapes", "leftImg8bit/<split>/<city>/*_leftImg8bit.png")
    one_of("split", split, [folder.name for folder in _folders(top)], f" in {top}")
    others: list[Path] = []
    images = _files(top / split, ending=IMAGE, others=others)
    if not images:
        raise DataError(f"{top / split}: no <city>/*{IMAGE} there, only {_listing(top / split)}; unpack the images")
    found = {} if labels == "ignore" else _files(root / "gtFine" / split, ending=known.ending)
    missing = sorted(set(images) - set(found))
    if labels == "required" and missing:
        wanted = root / "gtFine" / split / f"{missing[0]}{known.ending}"
        raise DataError(
            f"{images[missing[0]]}: has no label {wanted}{more(missing)}; unpack gtFine, "
            'or use labels="optional" to do without'
        )
    kind: Kind = "labels" if known.images == "ids" else "rgb"
    return Split(
        [ItemFiles(name, path, label=found.get(name), label_kind=kind) for name, path in images.items()], others
    )


def folder(root: Path, split: str, labels: str, known: LabelSet) -> Split:
    """All photographs (see `finding`) below root/<split>, or below a root without splits. There are no labels."""
    if fitting(root) in ("cityscapes", "pairs"):
        raise _wrong_layout(root, "folder", "a folder of nothing but images")
    base, undivided = root / split, False
    if not base.is_dir():
        base, undivided = _without_splits(root, split), True
    images = _files(base)
    if not images:
        raise _wrong_layout(base, "folder", f"{_ANY} at any depth")
    return Split([ItemFiles(name, path) for name, path in images.items()], [], undivided)


def pairs(root: Path, split: str, labels: str, known: LabelSet) -> Split:
    """clean/NAME with noisy/NAME or all of noisy/NAME/, below root/<split> or a root without splits. No labels."""
    base, undivided = root / split, False
    if not _has_pairs(base) and _has_pairs(root):
        base, undivided = _without_splits(root, split), True
    if not _has_pairs(base):
        if splits := [folder.name for folder in _folders(root) if _has_pairs(folder)]:
            one_of("split", split, splits, f" in {root}")
        raise _wrong_layout(root, "pairs", "clean/ and noisy/, or <split>/clean/ and <split>/noisy/")
    clean, noisy = _files(base / "clean"), _files(base / "noisy")
    # By its name, or as one of several in the folder of the clean photograph's name.
    partner = {name: name if name in clean else name.rpartition("/")[0] for name in noisy}
    alone = sorted((clean.keys() - set(partner.values())) | {name for name, of in partner.items() if of not in clean})
    if alone:
        path, other = (clean[alone[0]], "noisy") if alone[0] in clean else (noisy[alone[0]], "clean")
        several = f", nor a folder {alone[0]}/ of them" if other == "noisy" else ""
        raise DataError(f"{path}: has no partner in {base / other}{several}{more(alone)}; add it or remove the file")
    if not clean:
        raise DataError(f"{base / 'clean'}: holds no {_ANY}; put the clean images there")
    return Split(
        [ItemFiles(name, clean[of], noisy=noisy[name], scene=of) for name, of in partner.items()], [], undivided
    )


def _has_pairs(folder: Path) -> bool:
    return (folder / "clean").is_dir() and (folder / "noisy").is_dir()


def open_root(root: str | Path) -> Path:
    """The absolute path of a local folder that is not empty; DataError otherwise."""
    if not str(root):
        raise DataError("data.root: is not set; give the folder with the photographs, such as data.root=photos")
    if "://" in str(root):
        raise DataError(f"{root}: only mounted file systems are read; mount it or copy it, and give the path")
    path = Path(os.path.abspath(Path(root).expanduser()))
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path}: {what}; give the folder of the data (`d2sm scenes <folder>` writes one to try)")
    if not any(path.iterdir()):
        raise DataError(f"{path}: is empty; unpack or mount the data there (`d2sm scenes <folder>` writes some to try)")
    return path


def _files(top: Path, *, ending: str | None = None, others: list[Path] | None = None) -> dict[str, Path]:
    """The files below a folder by name: their path there without suffix, or without the ending.

    Args:
        ending: take files that end so, in upper or lower case; None: photographs.
        others: the photographs with another ending are added to it.
    """
    found: dict[str, Path] = {}
    for path in walk(top) if top.is_dir() else ():
        if not (path.name.lower().endswith(ending.lower()) if ending else is_photograph(path)):
            if others is not None and is_photograph(path):
                others.append(path)
            continue
        relative = path.relative_to(top).as_posix()
        name = relative[: -len(ending)] if ending else os.path.splitext(relative)[0]
        if name in found:
            raise DataError(f"{path}: collides with {found[name].name}, both are named {name!r}; rename one")
        if not name.isprintable():  # names that are not UTF-8 included
            raise DataError(f"{str(path)!a}: has unprintable characters in its name; rename it")
        found[name] = path
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _without_splits(root: Path, split: str) -> Path:
    """The root itself. With other splits in it, it is refused: `val` must not silently mean all of train and val.

    So is one with folders that mean splits by other names: they would be taken for mere sub-folders.
    """
    names = [folder.name for folder in _folders(root)]
    if splits := sorted(_SPLITS & set(names)):
        one_of("split", split, splits, f" in {root}")
    if meant := [name for name in names if name.lower() in _SPLITS | _ALSO_SPLITS]:
        train = next((name for name in meant if name.lower().startswith("train")), "NAME")
        val = next((name for name in meant if name != train), "NAME")
        raise DataError(
            f"{root}: has no folder {split}/, but {listed(f'{name}/' for name in meant)}; if these are its splits, set "
            f"data.train_split={train} data.val_split={val}, else rename them"
        )
    one_of("split", split, (TRAIN, VAL), f" in {root}, which has no folders of splits")
    return root


def one_level_off(root: Path) -> list[Path]:
    """The folders around a root that have the Cityscapes layout: one above it, those in it."""
    return [path for path in (root.parent, *_folders(root)) if (path / "leftImg8bit").is_dir()]


def fitting(root: Path) -> Layout | None:
    """The layout that a folder looks like."""
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    if any(_has_pairs(folder) for folder in (root, *_folders(root))):
        return "pairs"
    return "folder" if any(map(is_photograph, walk(root))) else None


def _wrong_layout(root: Path, layout: str, looked_for: str) -> DataError:
    near = one_level_off(root)
    fits = fitting(root)
    if near and layout == "cityscapes":
        remedy = f"give {near[0]} as the root"
    elif fits and fits != layout:
        remedy = f"data.layout={fits} fits"
    else:
        remedy = "no layout fits: see the README for the three that do"
    return DataError(f"{root}: not data.layout={layout}: looked for {looked_for}, found {_listing(root)}; {remedy}")


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return listed(names, 4) or "nothing"


def one_of(what: str, value: str, allowed: Collection[str], where: str = "") -> None:
    """Check that a name is one of those allowed. Raises DataError, which lists them."""
    if value in allowed:
        return
    hint = did_you_mean(value, allowed)
    raise DataError(f"{what} {value!r} is unknown{where}; there are: {', '.join(allowed) or 'none'}{hint}")
