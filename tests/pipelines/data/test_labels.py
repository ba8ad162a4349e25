"""Label sets: built in and from files, label images of ids and of colours, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2sm.label_names import CLASSES, COLOURS, LABEL_IDS
from d2sm.objectives.segmentation import ABSENT
from pipelines.config import Config, ConfigError
from pipelines.data.images import DataError, LabelError, read_labels, write_png
from pipelines.data.index import index
from pipelines.data.items import read
from pipelines.data.labels import VOID, label_set
from pipelines.data.splits import check_labels, index_training
from pipelines.networks.segmenters import OfClasses, SegmenterError, checked
from pipelines.prepare import prepare
from tests.helpers.segmenters import segmenter

FILE: dict[str, Any] = {
    "classes": [
        {"name": "ground", "id": [7, 8], "colour": [128, 64, 128], "like": "road"},
        {"name": "sky", "id": 23, "colour": [70, 130, 180]},
        {"name": "things", "id": 26, "colour": [0, 0, 142], "like": "car"},
    ],
    "ignore": [0, 255],
}
IDS = np.array([[7, 8, 23], [26, 0, 255]], np.uint8)
TRAIN_IDS = [[0, 0, 1], [2, 255, 255]]


def written(path: Path, **changes: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(FILE | changes))  # JSON is YAML
    return str(path)


def test_the_built_in_sets() -> None:
    cityscapes, camvid = label_set("cityscapes"), label_set("camvid")
    assert cityscapes.classes == cityscapes.like == CLASSES and np.array_equal(cityscapes.colours, COLOURS)
    found = cityscapes.train_ids(np.arange(35, dtype=np.uint8)[None], Path("a.png"))[0]
    assert [int(value) for value in found if value != VOID] == list(range(19))
    assert np.flatnonzero(found != VOID).tolist() == list(LABEL_IDS)
    assert len(camvid.classes) == 11 and camvid.classes[4:6] == ("pavement", "tree")
    assert set(camvid.like) <= set(CLASSES) and camvid.fingerprint != cityscapes.fingerprint


def test_label_images_of_ids_and_of_colours(tmp_path: Path) -> None:
    name = written(tmp_path / "mine.yaml")
    write_png(tmp_path / "ids.png", IDS)
    assert read_labels(tmp_path / "ids.png", name).tolist() == TRAIN_IDS
    known = label_set(name)
    assert known.classes == ("ground", "sky", "things") and known.like == ("road", "sky", "car")
    assert known.shown == f"mine-{known.fingerprint}"
    coloured = written(tmp_path / "coloured.yaml", images="colours", ignore=[[0, 0, 0]])
    colours = np.array([[*known.colours.tolist(), [0, 0, 0]]], np.uint8)
    write_png(tmp_path / "colours.png", colours)
    assert read_labels(tmp_path / "colours.png", coloured).tolist() == [[0, 1, 2, 255]]
    write_png(tmp_path / "colours.png", colours + np.uint8(1))
    with pytest.raises(LabelError, match=r"colours.png: holds the colour \[129, 65, 129\].*data.labels=.*coloured"):
        read_labels(tmp_path / "colours.png", coloured)


@pytest.mark.parametrize("name", ["camvid", "file"])
def test_an_unknown_id_is_one_line(name: str, tmp_path: Path) -> None:
    name = written(tmp_path / "mine.yaml") if name == "file" else name
    write_png(tmp_path / "ids.png", np.full((2, 2), 25, np.uint8))
    with pytest.raises(LabelError, match=rf"^[^\n]*ids.png: holds the value 25[^\n]*data.labels={name}[^\n]*$"):
        read_labels(tmp_path / "ids.png", name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": []}, "classes"),
        ({"classes": [FILE["classes"][0], {**FILE["classes"][0]}]}, "class ground is there twice"),
        ({"classes": [FILE["classes"][0], {**FILE["classes"][1], "id": 8}]}, "ground and sky have the same id 8"),
        ({"classes": [{**FILE["classes"][0], "like": "roads"}]}, "like: roads.*did you mean road"),
        ({"classes": [{"name": "sky", "colour": [0, 0, 1]}]}, "class sky: has no id"),
        ({"ignore": [23]}, "id 23 is that of class sky"),
        ({"ignore": [[0, 0, 0]]}, "ignore"),
        ({"ignore": [256]}, "ignore"),
        ({"images": "colors"}, "images"),
        ({"ending": "labels.tif"}, "ending: labels.tif"),
        ({"colour": 3}, "colour"),
    ],
)
def test_a_file_that_contradicts_itself_is_one_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    name = written(tmp_path / "mine.yaml", **changes)
    with pytest.raises(ConfigError, match=rf"^data.labels=[^\n]*{words}[^\n]*$"):
        label_set(name)


def test_a_value_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    twice = {"classes": [{**FILE["classes"][0], "id": [7, 8, 7]}, *FILE["classes"][1:]], "ignore": [255, 0, 255]}
    once, known = label_set(written(tmp_path / "once.yaml")), label_set(written(tmp_path / "twice.yaml", **twice))
    assert known.fingerprint == once.fingerprint
    colours = written(tmp_path / "colours.yaml", images="colours", ignore=[[0, 0, 0], [0, 0, 0]])
    assert np.count_nonzero(label_set(colours).of_known == VOID) == 1


def test_a_set_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name, words in (("camvids", "did you mean camvid"), (str(tmp_path / "none.yaml"), "No such file")):
        with pytest.raises(ConfigError, match=f"data.labels={name}: .*{words}"):
            label_set(name)


def city(root: Path) -> Path:
    write_png(root / "leftImg8bit/val/ulm/0_leftImg8bit.png", np.full((2, 3, 3), 9, np.uint8))
    write_png(root / "gtFine/val/ulm/0_gtFine_labelIds.png", IDS)
    return root


@pytest.mark.slow
def test_a_prepared_set_holds_train_ids_of_its_label_set(ray_session: None, tmp_path: Path) -> None:
    root, name = city(tmp_path / "city"), written(tmp_path / "mine.yaml")
    prepare(root, tmp_path / "prepared", splits=["val"], label_set=name, quiet=True)
    (item,) = index(tmp_path / "prepared", "val", label_set=name).to_pylist()
    label = read(item, label_set=name).label
    assert label is not None and label.tolist() == TRAIN_IDS
    with pytest.raises(DataError, match="labels of mine-.*not cityscapes.*data.labels"):
        index(tmp_path / "prepared", "val")


def test_the_labels_of_colours_are_other_files(tmp_path: Path) -> None:
    root = city(tmp_path / "city")
    name = written(tmp_path / "coloured.yaml", images="colours", ignore=[[0, 0, 0]])
    with pytest.raises(DataError, match="0_gtFine_color.png"):
        index(root, "val", label_set=name)
    write_png(root / "gtFine/val/ulm/0_gtFine_color.png", np.zeros((2, 3, 3), np.uint8))
    (item,) = index(root, "val", label_set=name).to_pylist()
    label = read(item, label_set=name).label
    assert label is not None and (label == VOID).all()


def test_a_published_segmenter_gives_the_classes_of_the_set() -> None:
    network, image = segmenter(), torch.rand(1, 3, 16, 24)
    of_it = OfClasses(network, ("road", "sky", "fish", "car"))
    with torch.no_grad():
        logits, found = network(image), of_it(image)
    for place, name in enumerate(("road", "sky", None, "car")):
        wanted = torch.full((1, 16, 24), ABSENT) if name is None else logits[:, CLASSES.index(name)]
        assert torch.equal(found[:, place], wanted)
    with pytest.raises(SegmenterError, match=r"\(1, 19, 64, 96\).*needs logits \(1, 3, 64, 96\).*data.labels"):
        checked("mine:network", network, 3)


def test_an_unknown_id_is_said_before_a_training(tmp_path: Path) -> None:
    root = city(tmp_path / "city")
    (root / "leftImg8bit/val").rename(root / "leftImg8bit/train")
    (root / "gtFine/val").rename(root / "gtFine/train")
    config = Config().replace(
        {
            "data.root": str(root), "data.labels": written(tmp_path / "mine.yaml", ignore=[0]),
            "loss.cross_entropy": 1.0, "loss.segmenter": "espnet-camvid",
        }
    )  # fmt: skip
    items = index_training(config)
    with pytest.raises(DataError, match="holds the value 255.*data.labels=.*mine.yaml"):
        check_labels(config, items)
    check_labels(config.replace({"data.labels": written(tmp_path / "other.yaml")}), items)
    check_labels(config.replace({"loss.cross_entropy": 0}), items)
