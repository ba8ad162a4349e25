"""Which files of a folder are photographs: hidden ones, folders named as files, links, circles, unreadable folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.data.finding import is_photograph, photographs
from pipelines.data.images import DataError


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def found(top: Path) -> list[str]:
    return [path.relative_to(top).as_posix() for path in photographs(top)]


def test_suffix_in_upper_and_lower_case_and_hidden_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.Jpeg", "d.TIF", "e.tiff", "f.webp", "g.BMP"):
        assert is_photograph(put(tmp_path / name))
    for name in ("._a.png", ".png", "notes.txt", "h.png.part", "png", ".trash/a.png", "i.gif"):
        assert not is_photograph(put(tmp_path / name)) or "/" in name
    assert found(tmp_path) == ["a.JPG", "b.png", "c.Jpeg", "d.TIF", "e.tiff", "f.webp", "g.BMP"]


def test_a_folder_named_as_a_photograph_is_searched(tmp_path: Path) -> None:
    put(tmp_path / "album.png/a.png")
    assert found(tmp_path) == ["album.png/a.png"]


def test_links_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path / "store/a.png")
    (tmp_path / "store/circle").symlink_to(tmp_path)
    top = tmp_path / "top"
    top.mkdir()
    (top / "album").symlink_to("../store")
    (top / "again").symlink_to("../store")
    (top / "single.png").symlink_to("../store/a.png")
    assert found(top) == ["single.png", "again/a.png"]


def test_what_cannot_be_read_is_left_to_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    assert found(tmp_path) == ["dangling.png", "itself.png", "pipe.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "dark/a.png")
    put(tmp_path / "z.png")
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "dark":  # what the system says to anybody but root after chmod 000
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    line = f"{tmp_path / 'dark'}: Permission denied; make the folder readable"
    with pytest.raises(DataError, match=line):
        photographs(tmp_path)
    told: list[tuple[Path, str]] = []
    assert photographs(tmp_path, unreadable=lambda *folder: told.append(folder)) == [tmp_path / "z.png"]
    assert told == [(tmp_path / "dark", line)]
