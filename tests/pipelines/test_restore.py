"""Restoring files and folders: what is written, and what is refused before anything is."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from d2sm import inference
from d2sm.models import FFDNet, WrappedNetwork
from d2sm.noise import clipped, gaussian, seed_of
from pipelines import denoise
from pipelines.data.images import ImageError, read_rgb, write_png
from pipelines.data.index import index
from pipelines.data.photofile import About, Photo, read_photo, write_photo
from pipelines.inference import noise_level
from pipelines.inference.samples import pixels, tensor
from pipelines.restore import Incomplete, RestoreError, restore
from pipelines.runtime.threads import torch_threads
from tests.foreign.tiny_network import Whole
from tests.helpers.image_files import full_disk
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
    return pixels(inference.restore(model, tensor(read_rgb(path)), sigma))


def test_a_file(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    written = restore(photos / "a.png", tmp_path / "out" / "x.png", model=model, sigma=25)
    assert written == [tmp_path / "out" / "x.png"]
    np.testing.assert_array_equal(read_rgb(written[0]), expected(model, photos / "a.png", 25))


def test_a_file_into_a_folder(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    written = restore(photos / "more" / "c.JPG", tmp_path / "out", model=model, sigma=25)
    assert written == [tmp_path / "out" / "c.png"]


def test_a_folder_with_its_subfolders(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    written = restore(photos, tmp_path / "out", model=model, sigma=15, quiet=True)
    assert written == [tmp_path / "out" / name for name in ("a.png", "b.png", "more/c.png")]
    for read, write in zip(("a.png", "b.png", "more/c.JPG"), written, strict=True):
        np.testing.assert_array_equal(read_rgb(write), expected(model, photos / read, 15))


@pytest.mark.parametrize("tile", [1, 16, 33, 512])
def test_tiles_give_the_whole(model: nn.Module, photos: Path, tmp_path: Path, tile: int) -> None:
    (written,) = restore(photos / "b.png", tmp_path / "tiled.png", model=model, sigma=40, tile=tile)
    difference = read_rgb(written).astype(int) - expected(model, photos / "b.png", 40)
    # Float32 rounding may tip a pixel over the middle between two of 255 levels, no more.
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_side_by_side_is_one_by_one(model: nn.Module, photos: Path, tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    with torch_threads(threads):
        written = restore(photos, tmp_path / "out", model=model, sigma=15, quiet=True)
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before
    for read, write in zip(("a.png", "b.png", "more/c.JPG"), written, strict=True):
        np.testing.assert_array_equal(read_rgb(write), expected(model, photos / read, 15))


def test_tiles_by_the_memory_at_hand_are_said_once(
    model: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.inference.tiling.free_bytes", lambda device: 0)
    (photos / "a.png").unlink()
    written = restore(photos, tmp_path / "out", model=model, sigma=15)
    said = [line for line in capsys.readouterr().err.splitlines() if "tiles of" in line]
    assert len(said) == 1 and f"{photos / 'b.png'}: restored in tiles of 14 pixels" in said[0]
    difference = read_rgb(written[0]).astype(int) - expected(model, photos / "b.png", 15)
    assert np.abs(difference).max() <= 1


def test_a_folder_goes_on_after_what_cannot_be_restored(
    model: nn.Module, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(data[: len(data) // 2])
    os.mkfifo(photos / "more" / "a.PNG")
    (photos / "z.png").symlink_to("nowhere")
    with torch_threads(2), pytest.raises(Incomplete) as caught:
        restore(photos, tmp_path / "out", model=model, sigma=15)
    assert str(caught.value) == (
        "2 restored, 3 skipped: b.png: is truncated (the file ends too early); z.png: is a link to nowhere, which does "
        "not exist; more/a.PNG: is a named pipe, not a file"
    )
    assert caught.value.written == [tmp_path / "out" / name for name in ("a.png", "more/c.png")]
    assert sorted(found(tmp_path / "out")) == ["a.png", "more/c.png"]
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert skipped == [f"skipped: {line}" for _, line in caught.value.skipped]
    assert (
        skipped[0] == f"skipped: {photos / 'b.png'}: is truncated (the file ends too early); copy or download it again"
    )


class Reflecting(nn.Module):
    """Takes no side below 41 pixels, since it pads with a reflection of the image, and no image of 64 rows."""

    blind, stride, receptive_field, bytes_per_pixel = True, 1, 81, 100

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        if noisy.shape[2] == 64:
            torch.empty(2**46)  # more than there can be
        wide = nn.functional.pad(noisy, (40, 40, 40, 40), mode="reflect")
        return wide[..., 40:-40, 40:-40] + 0 * self.layer(noisy)


def test_a_folder_goes_on_after_what_the_network_does_not_take(photos: Path, tmp_path: Path) -> None:
    write_png(photos / "large.png", np.zeros((64, 64, 3), np.uint8))
    with torch_threads(2), pytest.raises(Incomplete) as caught:
        restore(photos, tmp_path / "out", model=Reflecting(), quiet=True)
    assert caught.value.written == [tmp_path / "out" / "b.png"]
    lines = {path.name: line for path, line in caught.value.skipped}
    assert sorted(lines) == ["a.png", "c.JPG", "large.png"]
    assert lines["a.png"].startswith(f"{photos / 'a.png'}: Reflecting failed on it: ") and "Padding" in lines["a.png"]
    assert lines["a.png"].endswith("; give another model")
    assert "allocate memory" in lines["large.png"] and lines["large.png"].endswith(
        "; give a smaller --tile, or another device"
    )
    assert all("\n" not in line for line in lines.values())
    with pytest.raises(ImageError, match="a.png: Reflecting failed on it: .*; give another model$"):
        restore(photos / "a.png", tmp_path / "out.png", model=Reflecting())


class Slow(nn.Module):
    """Has a mode, and takes longer over an image of 70 rows."""

    blind, stride, receptive_field, bytes_per_pixel = True, 1, 1, 100

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3 if noisy.shape[2] == 70 else 0.1)
        restored: torch.Tensor = self.norm(noisy)
        return restored


def test_the_network_convolves_in_float32_in_every_thread(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    setting, notes = torch.backends.cudnn.conv, []
    with model.register_forward_pre_hook(lambda *_: notes.append(setting.fp32_precision)), torch_threads(3):
        restore(photos, tmp_path / "out", model=model, sigma=25, quiet=True)
    assert notes == ["ieee"] * 3 and setting.fp32_precision == "tf32"


def test_a_network_in_training_mode_is_in_eval_mode_in_every_thread(photos: Path, tmp_path: Path) -> None:
    network = Slow().train()
    with torch_threads(2):
        restore(photos, tmp_path / "out", model=network, quiet=True)
    assert network.training and network.norm.training and not network.norm.num_batches_tracked
    network.eval()
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_rgb(tmp_path / "out" / name), expected(network, photos / name, 0))


@pytest.mark.parametrize("tile", [0, -1, "large"])
def test_a_tile_that_is_none_is_refused(model: nn.Module, photos: Path, tmp_path: Path, tile: Any) -> None:
    refused(f"^--tile={tile}: .*None for whole images", model, photos, tmp_path / "out", sigma=25, tile=tile)


def test_long_names_are_written_and_longer_ones_skipped(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    fits, grows = f"{chr(0x6F22) * 72}.png", f"{'x' * 251}.jpg"  # the second has no room for ".webp"
    for name in (fits, grows):
        (photos / name).write_bytes((photos / "a.png").read_bytes())
    written = restore(photos, tmp_path / "png", model=model, sigma=15, quiet=True)
    assert {fits, f"{'x' * 251}.png"} < {path.name for path in written}
    for _ in range(2):  # the second time, the target exists
        with pytest.raises(Incomplete, match="4 restored, 1 skipped: x+.jpg: the name or path of its result") as caught:
            restore(photos, tmp_path / "webp", model=model, sigma=15, format="webp", quiet=True)
        assert len(caught.value.written) == 4
    refused("a.png: the name or path of its result", model, photos / "a.png", tmp_path / f"{'y' * 300}.png", sigma=15)


def test_images_of_other_formats_are_not_dropped_without_a_word(
    model: nn.Module, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("IMG_1.HEIC", "IMG_2.heic", "more/IMG_3.CR2", "more/IMG_4.gif", "._IMG_5.heic"):
        (photos / name).touch()
    assert len(restore(photos, tmp_path / "out", model=model, sigma=15)) == 3
    said = capsys.readouterr().err
    assert "left out: IMG_1.HEIC, IMG_2.heic, IMG_3.CR2 and 1 more: of formats that are not read" in said


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def test_training_and_denoising_take_the_same_photographs(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    (photos / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(60))  # what macOS leaves beside a file
    (photos / "album.png").mkdir()
    (photos / "album.png" / "d.TIF").write_bytes(b"")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(photos / "album.png" / "d.TIF", "TIFF")
    (photos / "linked").symlink_to(photos / "more")
    (photos / "more" / "circle").symlink_to(photos)
    written = restore(photos, tmp_path / "out", model=model, sigma=25, quiet=True)
    names = index(photos, "", layout="folder")["name"].to_pylist()
    assert sorted(path.relative_to(tmp_path / "out").with_suffix("").as_posix() for path in written) == names
    assert names == ["a", "album.png/d", "b", "linked/c"]


def test_a_target_inside_the_source_is_refused(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    before = sorted(found(photos))
    for target in (photos / "restored", photos / "more", photos / "x" / ".." / "y"):
        refused("lies inside .*would restore its own results; give a folder outside", model, photos, target, sigma=25)
    (photos / "elsewhere").symlink_to(tmp_path)
    refused("lies inside", model, photos, photos / "elsewhere" / "out", sigma=25)
    (photos / "elsewhere").unlink()
    assert sorted(found(photos)) == before
    # A source inside its target is harmless, until a result would lie on a photograph.
    assert restore(photos / "more", photos, model=model, sigma=25, quiet=True) == [photos / "c.png"]
    (photos / "more" / "more").mkdir()
    (photos / "more" / "c.JPG").rename(photos / "more" / "c.png")
    write_png(photos / "more" / "more" / "c.png", read_rgb(photos / "a.png"))
    refused("c.png: would overwrite its source, or another", model, photos / "more", photos, sigma=25)


KINDS = {
    "grey.png": (np.uint8, 1), "grey16.png": (np.uint16, 1), "deep.png": (np.uint16, 3), "alpha.png": (np.uint8, 4),
    "greyalpha.png": (np.uint8, 2), "deepalpha.tif": (np.uint16, 4), "grey16.tif": (np.uint16, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_photograph_comes_back_as_it_was(model: nn.Module, tmp_path: Path, name: str) -> None:
    kind, channels = KINDS[name]
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (37, 53, channels), dtype=kind)
    colours = values[..., 0] if channels < 3 else values[..., :3]
    given = Photo(colours, values[..., -1] if channels in (2, 4) else None, About(None, None, (300.0, 300.0)))
    write_photo(tmp_path / name, given)
    (written,) = restore(tmp_path / name, tmp_path / f"out{Path(name).suffix}", model=model, sigma=25)
    restored = read_photo(written)
    rgb = np.repeat(colours[..., None], 3, 2) if channels < 3 else colours
    most = np.iinfo(kind).max
    image = inference.restore(model, torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)[None] / most, 25.0)[0]
    wanted = (image.mean(0) if channels < 3 else image.permute(1, 2, 0)).clamp(0, 1) * most
    assert restored.pixels.dtype == kind and restored.pixels.shape == colours.shape
    assert np.abs(restored.pixels - wanted.numpy()).max() <= 0.51
    assert restored.about.density == pytest.approx((300, 300), abs=0.01)
    if given.alpha is None:
        assert restored.alpha is None
    else:
        np.testing.assert_array_equal(restored.alpha, given.alpha)


def test_a_telephone_s_photograph_stays_upright(model: nn.Module, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    for target in ("b.png", "b.jpg"):
        restore(tmp_path / "a.jpg", tmp_path / target, model=model, sigma=25)
        with Image.open(tmp_path / target) as image:
            assert image.size == (40, 60) and image.getexif()[0x112] == 1


def test_formats_of_a_folder(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    written = restore(photos, tmp_path / "same", model=model, sigma=25, format="same", quiet=True)
    assert [path.name for path in written] == ["a.png", "b.png", "c.JPG"]
    written = restore(photos, tmp_path / "jpg", model=model, sigma=25, format="jpg", quiet=True)
    assert [path.name for path in written] == ["a.jpg", "b.jpg", "c.jpg"]
    with Image.open(written[0]) as image:
        assert image.format == "JPEG"
    write_photo(photos / "deep.png", Photo(np.zeros((20, 20), np.uint16)))
    with pytest.raises(Incomplete, match="3 restored, 1 skipped: deep.png: .*JPEG cannot hold 16 bits"):
        restore(photos, tmp_path / "again", model=model, sigma=25, format="jpg", quiet=True)


def test_paths_that_are_empty_or_end_in_a_slash(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    for source, target, name in (("", "out", "source"), (str(photos), "", "target")):
        with pytest.raises(RestoreError, match=f"{name}: is empty; give the path"):
            restore(source, target, model=model, sigma=25)
    assert restore(photos / "a.png", f"{tmp_path}/new/", model=model, sigma=25) == [tmp_path / "new" / "a.png"]
    refused(
        r"other: has no suffix.*name it other\.png, or other/ for",
        model,
        photos / "a.png",
        tmp_path / "other",
        sigma=25,
    )
    (tmp_path / "file").touch()
    refused("file: is a file, not a folder", model, photos, tmp_path / "file" / "x", sigma=25)
    (tmp_path / "full" / "a.png").mkdir(parents=True)
    refused("a.png: is a folder", model, photos, tmp_path / "full", sigma=25)


def test_a_tilde_is_the_home(model: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(photos)
    assert restore("~/photos/a.png", "~/out/", model=model, sigma=25) == [tmp_path / "out" / "a.png"]
    assert len(restore("~/photos", Path("~/all"), model=model, sigma=25, quiet=True)) == 3
    assert (tmp_path / "all" / "more" / "c.png").exists() and not (photos / "~").exists()


def test_a_full_disk_is_one_line_and_leaves_whole_files(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    last = photos / "more" / "c.JPG"
    write_png(last, np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    with full_disk(50_000), torch_threads(1), pytest.raises(RestoreError) as caught:
        restore(photos, tmp_path / "out", model=model, sigma=1, quiet=True)
    assert f"{tmp_path / 'out' / 'more' / 'c.png'}: would be larger than this process may write (ulimit -f)" in str(
        caught.value
    )
    assert "(2 of 3 are restored)" in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(found(tmp_path / "out")) == ["a.png", "b.png"]


def test_a_small_tile_is_raised_to_the_receptive_field(
    model: nn.Module, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore(photos / "b.png", tmp_path / "b.png", model=model, sigma=25, tile=3)
    said = capsys.readouterr().err
    assert "tile=3: raised to 14, the receptive field of FFDNet" in said
    assert "restore tile 15/15" in said  # 70 x 41 pixels


def test_a_large_photograph_is_stopped_within_a_tile(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    class Interrupts(nn.Module):
        """Ctrl-C comes at its third tile; the others take long."""

        blind, stride, receptive_field = True, 1, 1

        def __init__(self) -> None:
            super().__init__()
            self.calls, self.factor = 0, nn.Parameter(torch.tensor(1.0))

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            return noisy * self.factor

    stopped = Interrupts()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            restore(photos, tmp_path / "out", model=stopped, tile=4, quiet=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.calls < 100 and not (tmp_path / "out").exists()  # a.png alone has 140 tiles


def test_noise_for_a_trial(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    clean = tensor(read_rgb(photos / "a.png"))
    for clip, degrade in ((False, gaussian), (True, clipped)):
        (written,) = restore(photos / "a.png", tmp_path / "trial.png", model=model, add=50, clip=clip)
        noisy = degrade(clean, level=torch.tensor([50.0]), seeds=[seed_of("a")])
        np.testing.assert_array_equal(read_rgb(written), pixels(inference.restore(model, noisy, 50)))


def test_noise_for_a_file_whose_name_is_not_utf_8(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (photos / "a.png").rename(photos / f"{name}.png")
    written = restore(photos, tmp_path / "out", model=model, add=50, clip=False, quiet=True)
    assert tmp_path / "out" / f"{name}.png" in written and len(written) == 3
    assert seed_of(name) != seed_of("caf\xe8") and seed_of("café") == seed_of(os.fsdecode("café".encode()))


def street(kind: str) -> Photo:
    """A smooth picture with noise of sigma 20 as a file of this kind holds it."""
    rng, rows, columns = np.random.default_rng(1), *np.mgrid[:90, :130]
    smooth = 120 + 60 * np.sin(rows / 30) * np.cos(columns / 25)
    grey = (smooth[..., None] + rng.normal(0, 20, (90, 130, 1 if kind == "grey" else 3))).clip(0, 255)
    values = grey[..., 0] if kind == "grey" else grey
    of_16 = np.round(values * 257).astype(np.uint16) if kind == "16 bits" else np.round(values).astype(np.uint8)
    alpha = np.where(columns > 60, 255, 0).astype(np.uint8) if kind == "alpha" else None
    return Photo(of_16, alpha, About())


@pytest.mark.parametrize("kind", ["RGB", "grey", "16 bits", "alpha"])
def test_the_level_is_estimated_and_said(
    kind: str, model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(tmp_path / "a.png", street(kind))
    restore(tmp_path / "a.png", tmp_path / "auto.png", model=model, sigma="auto")
    said = capsys.readouterr()
    (level,) = re.findall(r"a\.png: sigma ([\d.]+) \(estimated\)", said.out + said.err)
    assert float(level) == pytest.approx(20, abs=1.5)
    found = noise_level.estimate(read_photo(tmp_path / "a.png").pixels)
    restore(tmp_path / "a.png", tmp_path / "told.png", model=model, sigma=found, quiet=True)
    assert (tmp_path / "auto.png").read_bytes() == (tmp_path / "told.png").read_bytes()


def test_an_estimate_is_refused_where_it_means_nothing(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    refused("sigma=auto: Blind is blind", Blind(), photos / "a.png", tmp_path / "out.png", sigma="auto")
    refused(r"--sigma=loud: .*or auto", model, photos / "a.png", tmp_path / "out.png", sigma="loud")
    write_png(tmp_path / "small.png", np.zeros((7, 40, 3), np.uint8))
    with pytest.raises(ImageError, match="small.png: its noise level cannot be estimated.*8 pixels"):
        restore(tmp_path / "small.png", tmp_path / "out.png", model=model, sigma="auto")


def test_a_network_over_the_whole_image_is_restored_without_tiles(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = WrappedNetwork(Whole())
    (written,) = restore(photos / "a.png", tmp_path / "out.png", model=network, tile=16)
    said = capsys.readouterr()
    assert "tile=16: restored whole, without tiles: the receptive field of Whole is not known" in said.out + said.err
    np.testing.assert_array_equal(
        read_rgb(written), pixels(inference.restore(network, tensor(read_rgb(photos / "a.png"))))
    )


def test_its_former_name() -> None:
    assert denoise.denoise is restore and denoise.DenoiseError is RestoreError and denoise.Incomplete is Incomplete


def refused(words: str, model: nn.Module, source: Path, target: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=words) as error:
        restore(source, target, model=model, quiet=True, **options)
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
    written = restore(photos, tmp_path / "out", model=model, sigma=25, quiet=True)
    assert [path.name for path in written] == ["a.jpg.png", "a.png", "b.png", "c.png"]
    for path, source in zip(written, ("a.jpg", "a.png"), strict=False):
        np.testing.assert_array_equal(read_rgb(path), expected(model, photos / source, 25))
    write_png(photos / "a.jpg.png", read_rgb(photos / "b.png"))  # its result and that of a.jpg would be one file
    refused(r"a\.jpg.*would be written to.*rename one", model, photos, tmp_path / "new", sigma=25)
    assert not (tmp_path / "new").exists()


def test_the_level_of_noise(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    refused("--sigma", model, photos / "a.png", out)
    for network in (model, Blind()):
        for level in (-1.0, 256.0, float("nan"), float("inf")):
            refused(rf"--sigma={level:g}: .*0 to 255", network, photos / "a.png", out, sigma=level)
            refused(rf"--add-noise={level:g}: .*0 to 255", network, photos / "a.png", out, add=level)
    refused("--unclipped: is for --add-noise", model, photos / "a.png", out, sigma=25, clip=False)
    assert not out.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tile", [16, None])
def test_a_result_that_is_not_finite_is_not_written(
    photos: Path, tmp_path: Path, value: float, tile: int | None
) -> None:
    broken = Blind()
    broken.factor.data.fill_(value)
    write_png(photos / "a.png", np.ones((37, 53, 3), np.uint8))
    with pytest.raises(ImageError, match="a.png: Blind failed on it, its result is not finite"):
        restore(photos / "a.png", tmp_path / "out.png", model=broken, tile=tile, quiet=True)
    with pytest.raises(Incomplete, match="0 restored, 3 skipped"):
        restore(photos, tmp_path / "out", model=broken, tile=tile, quiet=True)
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "out").exists()


class Blind(nn.Module):
    """Halves every pixel and is not told the noise level."""

    blind, stride, receptive_field = True, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy * self.factor


def test_a_blind_model_needs_no_level(photos: Path, tmp_path: Path) -> None:
    (written,) = restore(photos / "a.png", tmp_path / "out.png", model=Blind())
    assert np.abs(read_rgb(written) - read_rgb(photos / "a.png") / 2).max() <= 0.5
    refused("sigma=25: Blind is blind", Blind(), photos / "a.png", tmp_path / "told.png", sigma=25)
    restore(photos / "a.png", tmp_path / "trial.png", model=Blind(), add=25)  # a trial needs the level all the same


def test_sources_that_cannot_be_restored(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    refused("none.png: no such file", model, photos / "none.png", tmp_path / "out.png", sigma=25)
    (tmp_path / "empty").mkdir()
    refused("holds no .png, .jpg, .*file", model, tmp_path / "empty", tmp_path / "out", sigma=25)
    refused("out.gif: .*out.png", model, photos / "a.png", tmp_path / "out.gif", sigma=25)
    refused("is not a PNG or JPEG", model, photos / "notes.txt", tmp_path / "out.png", sigma=25)
    data = (photos / "a.png").read_bytes()
    (tmp_path / "short.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="truncated"):
        restore(tmp_path / "short.png", tmp_path / "out.png", model=model, sigma=25)
    assert not (tmp_path / "out.png").exists()
