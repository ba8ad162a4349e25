"""The numbers of clean and noisy images, kept on disk: found again by content, and believed only if they are whole."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from pipelines.inference.known import _FILES, Known, KnownFile, about, digest

CPU = torch.device("cpu")
NUMBERS = {
    "a": Known(20.123456789012345, 1 / 3, math.nan, [[1, 2, 3, 4], [0, 0, 5, 7]]),
    "b": Known(math.nan, math.nan, 0.1, [[0] * 4]),
}


def file_in(folder: Path, data: str = "photographs") -> KnownFile:
    return KnownFile(about(data, ["weights"], CPU, 1), folder)


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    kept = file_in(tmp_path / "scores")
    assert kept.load() == {}
    kept.add({"a": NUMBERS["a"]})
    kept.add({"b": NUMBERS["b"], "equal": Known(math.inf, 1.0, math.nan, [[0]])})
    assert str(file_in(tmp_path / "scores").load()) == str(NUMBERS)  # nan included
    assert file_in(tmp_path / "scores", data="others").load() == {}
    assert kept.path.stat().st_mode & 0o777 == 0o600


def test_the_digest_is_of_every_pixel_and_label() -> None:
    clean, noisy, label = torch.rand(1, 3, 12, 16), torch.rand(1, 3, 12, 16), torch.zeros(12, 16, dtype=torch.uint8)
    changed = clean.clone()
    changed[0, 2, 11, 15] += 1e-6
    other = label.clone()
    other[3, 4] = 1
    found = [
        digest(clean, noisy, label), digest(changed, noisy, label), digest(clean, changed, label),
        digest(clean, noisy, other), digest(clean, noisy, None), digest(clean, None, label),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert digest(clean.clone(), noisy, label) == found[0]


@pytest.mark.parametrize(
    "damage", ["cut", "number", "shape", "foreign", "version", "writable by others", "link", "folder"]
)
def test_a_file_that_is_damaged_or_of_others_is_not_believed_and_replaced(tmp_path: Path, damage: str) -> None:
    kept = file_in(tmp_path / "scores")
    kept.add(NUMBERS)
    text = kept.path.read_text()
    tree = json.loads(text)
    if damage == "cut":
        kept.path.write_text(text[: len(text) // 2])
    elif damage == "number":
        kept.path.write_text(text.replace("20.12", "30.12"))
    elif damage == "shape":
        kept.path.write_text("[1, 2]")
    elif damage == "foreign":  # of another data set, under this one's name
        other = file_in(tmp_path / "scores", data="others")
        other.add(NUMBERS)
        os.replace(other.path, kept.path)
    elif damage == "version":
        tree["about"]["version"] = 0
        kept.path.write_text(json.dumps(tree))
    elif damage == "writable by others":
        kept.path.chmod(0o666)
    else:
        kept.path.unlink()
        (tmp_path / "elsewhere").write_text(text)
        kept.path.symlink_to(tmp_path / "elsewhere") if damage == "link" else kept.path.mkdir()
    assert kept.load() == {}
    kept.add(NUMBERS)
    if damage != "folder":  # which nobody removes
        assert str(kept.load()) == str(NUMBERS)


def test_the_folder_is_bounded_and_may_be_read_only(tmp_path: Path) -> None:
    for number in range(_FILES + 3):
        kept = file_in(tmp_path / "scores", data=str(number))
        kept.add(NUMBERS)
        os.utime(kept.path, (number, number))
    assert len(list((tmp_path / "scores").iterdir())) == _FILES
    (tmp_path / "file").touch()
    file_in(tmp_path / "file").add(NUMBERS)  # where nothing can be kept, nothing is said
