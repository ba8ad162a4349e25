"""Restoring files and folders: what is written, and what is refused before anything is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from d2sm.inference import restore
from d2sm.models import FFDNet
from d2sm.noise import add_noise, seed_of
from pipelines.data.images import ImageError, read_rgb, write_png
from pipelines.denoise import denoise
from pipelines.inference.samples import pixels, tensor
from pipelines.runtime.threads import torch_threads
from tests.helpers.networks import stirred


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return stirred(FFDNet(width=8, depth=3)).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of odd sizes, one of them a JPEG in a folder below."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name, size in (("a.png", (37, 53)), ("b.png", (70, 41))):
        write_png(folder / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (folder / "more").mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "more" / "c.JPG", "JPEG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def expected(model: nn.Module, path: Path, sigma: float) -> np.ndarray:
    return pixels(restore(model, tensor(read_rgb(path)), sigma))


def test_a_file(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    written = denoise(photos / "a.png", tmp_path / "out" / "x.png", model=model, sigma=25)
    assert written == [tmp_path / "out" / "x.png"]
    np.testing.assert_array_equal(read_rgb(written[0]), expected(model, photos / "a.png", 25))


def test_a_file_into_a_folder(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    written = denoise(photos / "more" / "c.JPG", tmp_path / "out", model=model, sigma=25)
    assert written == [tmp_path / "out" / "c.png"]


def test_a_folder_with_its_subfolders(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    written = denoise(photos, tmp_path / "out", model=model, sigma=15, quiet=True)
    assert written == [tmp_path / "out" / name for name in ("a.png", "b.png", "more/c.png")]
    for read, write in zip(("a.png", "b.png", "more/c.JPG"), written, strict=True):
        np.testing.assert_array_equal(read_rgb(write), expected(model, photos / read, 15))


@pytest.mark.parametrize("tile", [1, 16, 33, 512])
def test_tiles_give_the_whole(model: nn.Module, photos: Path, tmp_path: Path, tile: int) -> None:
    (written,) = denoise(photos / "b.png", tmp_path / "tiled.png", model=model, sigma=40, tile=tile)
    difference = read_rgb(written).astype(int) - expected(model, photos / "b.png", 40)
    # Float32 rounding may tip a pixel over the middle between two of 255 levels, no more.
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_side_by_side_is_one_by_one(model: nn.Module, photos: Path, tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    with torch_threads(threads):
        written = denoise(photos, tmp_path / "out", model=model, sigma=15, quiet=True)
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before
    for read, write in zip(("a.png", "b.png", "more/c.JPG"), written, strict=True):
        np.testing.assert_array_equal(read_rgb(write), expected(model, photos / read, 15))


def test_tiles_by_the_memory_at_hand_are_said_once(
    model: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.inference.tiling.free_bytes", lambda device: 0)
    (photos / "a.png").unlink()
    written = denoise(photos, tmp_path / "out", model=model, sigma=15)
    said = [line for line in capsys.readouterr().err.splitlines() if "tiles of" in line]
    assert len(said) == 1 and f"{photos / 'b.png'}: restored in tiles of 14 pixels" in said[0]
    difference = read_rgb(written[0]).astype(int) - expected(model, photos / "b.png", 15)
    assert np.abs(difference).max() <= 1


def test_the_one_that_cannot_be_read_ends_it_after_those_before(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    data = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(data[: len(data) // 2])
    with torch_threads(2), pytest.raises(ImageError, match=r"b\.png.*truncated"):
        denoise(photos, tmp_path / "out", model=model, sigma=15, quiet=True)
    assert (tmp_path / "out" / "a.png").exists()
    assert not (tmp_path / "out" / "b.png").exists()


def test_noise_for_a_trial(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    (written,) = denoise(photos / "a.png", tmp_path / "trial.png", model=model, add=50)
    clean = tensor(read_rgb(photos / "a.png"))
    noisy = add_noise(clean, sigma=torch.tensor([50.0]), seeds=[seed_of("a")])
    np.testing.assert_array_equal(read_rgb(written), pixels(restore(model, noisy, 50)))


def refused(words: str, model: nn.Module, source: Path, target: Path, **options: float) -> None:
    with pytest.raises(ValueError, match=words) as error:
        denoise(source, target, model=model, quiet=True, **options)
    assert "\n" not in str(error.value)


def test_a_source_is_never_written_over(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    before = (photos / "a.png").read_bytes()
    (tmp_path / "link").symlink_to(photos)
    picture = photos / "a.png"
    for source, target in ((picture, picture), (picture, photos), (picture, photos / "more" / ".." / "a.png"),
                           (photos, photos), (photos, tmp_path / "link")):  # fmt: skip
        refused("a.png: .*overwrite", model, source, target, sigma=25)
    assert (photos / "a.png").read_bytes() == before


def test_two_sources_of_one_name_are_both_kept(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    Image.fromarray(read_rgb(photos / "b.png")).save(photos / "a.jpg", "JPEG", quality=95)
    written = denoise(photos, tmp_path / "out", model=model, sigma=25, quiet=True)
    assert [path.name for path in written] == ["a.jpg.png", "a.png", "b.png", "c.png"]
    for path, source in zip(written, ("a.jpg", "a.png"), strict=False):
        np.testing.assert_array_equal(read_rgb(path), expected(model, photos / source, 25))
    write_png(photos / "a.jpg.png", read_rgb(photos / "b.png"))  # its result and that of a.jpg would be one file
    refused(r"a\.jpg.*would be written to.*rename one", model, photos, tmp_path / "new", sigma=25)
    assert not (tmp_path / "new").exists()


def test_the_level_of_noise(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    refused("--sigma", model, photos / "a.png", out)
    for level in (-1.0, 256.0, float("nan")):
        refused("0..255|0 to 255", model, photos / "a.png", out, sigma=level)
        refused("0..255|0 to 255", model, photos / "a.png", out, add=level)
    assert not out.exists()


class Blind(nn.Module):
    """Halves every pixel and is not told the noise level."""

    blind, stride, receptive_field = True, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy * self.factor


def test_a_blind_model_needs_no_level(photos: Path, tmp_path: Path) -> None:
    (written,) = denoise(photos / "a.png", tmp_path / "out.png", model=Blind())
    assert np.abs(read_rgb(written) - read_rgb(photos / "a.png") / 2).max() <= 0.5
    refused("sigma=25: Blind is blind", Blind(), photos / "a.png", tmp_path / "told.png", sigma=25)
    denoise(photos / "a.png", tmp_path / "trial.png", model=Blind(), add=25)  # a trial needs the level all the same


def test_sources_that_cannot_be_restored(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    refused("none.png: no such file", model, photos / "none.png", tmp_path / "out.png", sigma=25)
    (tmp_path / "empty").mkdir()
    refused("holds no .png, .jpg, .*file", model, tmp_path / "empty", tmp_path / "out", sigma=25)
    refused("out.gif: .*out.png", model, photos / "a.png", tmp_path / "out.gif", sigma=25)
    refused("is not a PNG or JPEG", model, photos / "notes.txt", tmp_path / "out.png", sigma=25)
    data = (photos / "a.png").read_bytes()
    (tmp_path / "short.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="truncated"):
        denoise(tmp_path / "short.png", tmp_path / "out.png", model=model, sigma=25)
    assert not (tmp_path / "out.png").exists()
