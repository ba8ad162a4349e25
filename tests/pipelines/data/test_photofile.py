"""Photographs come back as they were: pixels, transparency, profile, density, EXIF; upright, in every format."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from pipelines.data.images import ImageError
from pipelines.data.photofile import About, Photo, check_fits, check_suffix, read_photo, write_photo
from tests.helpers.image_files import chunk, full_disk, png_of, put

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SMOOTH = np.kron(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
KINDS = [(kind, channels) for kind in (np.uint8, np.uint16) for channels in (1, 2, 3, 4)]
EXIF, GPS = 0x8769, 0x8825


def photo_of(kind: Any, channels: int) -> Photo:
    values = np.random.default_rng(channels).integers(0, np.iinfo(kind).max + 1, (37, 53, channels), dtype=kind)
    colours = values[..., 0] if channels < 3 else values[..., :3]
    return Photo(colours, values[..., -1] if channels in (2, 4) else None, About(SRGB, None, (300.0, 200.0)))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x112], found[271], found[306] = orientation, "Maker", "2020:01:01 00:00:00"
    found.get_ifd(EXIF).update({0x9003: "2020:01:01 00:00:00", 0xA002: 56, 0xA003: 40})
    found.get_ifd(GPS)[1] = "N"
    return found


def same(found: Photo, photo: Photo) -> None:
    assert found.pixels.dtype == photo.pixels.dtype
    np.testing.assert_array_equal(found.pixels, photo.pixels)
    if photo.alpha is None:
        assert found.alpha is None
    else:
        np.testing.assert_array_equal(found.alpha, photo.alpha)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind, channels", KINDS)
def test_every_kind_comes_back(tmp_path: Path, kind: Any, channels: int, suffix: str) -> None:
    photo, path = photo_of(kind, channels), tmp_path / "new" / f"a{suffix}"
    write_photo(path, photo)
    found = read_photo(path)
    same(found, photo)
    assert found.about.profile == SRGB and found.about.density == pytest.approx((300, 200), abs=0.01)
    stored = np.dstack([photo.pixels, photo.alpha]) if photo.alpha is not None else photo.pixels
    if suffix == ".tif":  # as another reader reads it
        np.testing.assert_array_equal(tifffile.imread(path), stored)
    elif kind == np.uint8:
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), stored)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_webp_is_lossless(tmp_path: Path, channels: int) -> None:
    photo = photo_of(np.uint8, channels)
    write_photo(tmp_path / "a.webp", photo)
    found = read_photo(tmp_path / "a.webp")
    grey = np.repeat(photo.pixels[..., None], 3, 2) if channels < 3 else photo.pixels  # WebP has no grey
    same(found, Photo(grey, photo.alpha))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_of_quality_95_without_subsampling(tmp_path: Path, channels: int) -> None:
    pixels = SMOOTH if channels == 3 else SMOOTH[..., 0]
    write_photo(tmp_path / "a.jpg", Photo(pixels, None, About(SRGB, None, (300, 200))))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.quantization[0][0] == 2  # that of quality 95; 3 at 90, 1 at 98
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}
        assert image.info["dpi"] == (300, 200) and image.info["icc_profile"] == SRGB
        assert np.abs(np.asarray(image).astype(int) - pixels).max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_orientation_is_applied_once_and_exif_stays(tmp_path: Path, orientation: int, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    options = {"lossless": True} if kind == "webp" else {"dpi": (300, 150)}
    Image.fromarray(SMOOTH).save(path, exif=exif(orientation).tobytes(), **options)
    photo = read_photo(path)
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(photo.pixels, shown)
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        write_photo(tmp_path / f"out{suffix}", photo)
        with Image.open(tmp_path / f"out{suffix}") as image:
            again = np.asarray(ImageOps.exif_transpose(image)).astype(int)
            assert again.shape == shown.shape and np.abs(again - shown).max() <= (25 if suffix == ".jpg" else 0)
            found = image.getexif()
            assert found[271] == "Maker" and found.get(0x112, 1) == 1
            inner = found.get_ifd(EXIF)
            assert inner[0x9003] == "2020:01:01 00:00:00" and found.get_ifd(GPS)[1] == "N"
            if kind != "tif":
                assert (inner[0xA002], inner[0xA003]) == shown.shape[1::-1]
            if kind != "webp" and suffix != ".webp":
                wanted = (300, 150) if orientation < 5 else (150, 300)
                assert image.info["dpi"] == pytest.approx(wanted, abs=0.02)


def test_the_thumbnail_of_the_former_pixels_is_dropped(tmp_path: Path) -> None:
    found = exif(6)
    found.get_ifd(0x8769)  # the folder is written only when it was asked for
    raw = bytearray(found.tobytes())
    (first,) = struct.unpack_from(">I", raw, 10)
    (count,) = struct.unpack_from(">H", raw, 6 + first)
    struct.pack_into(">I", raw, 6 + first + 2 + 12 * count, 8)  # a second folder: that of a thumbnail
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=bytes(raw))
    stored = read_photo(tmp_path / "a.jpg").about.exif
    assert stored is not None and struct.unpack_from(">I", stored, first + 2 + 12 * count) == (0,)
    assert len(stored) == len(raw) - 6  # nothing moved: notes of cameras hold absolute positions


def test_what_a_png_says_about_its_colours_stays(tmp_path: Path) -> None:
    extra = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))
    write_photo(tmp_path / "out.png", read_photo(put(tmp_path, png_of(SMOOTH, extra=extra))))
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["gamma"] == pytest.approx(0.45455) and image.info["dpi"] == pytest.approx((72, 72), abs=0.01)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colours_become_alpha(tmp_path: Path, mode: str) -> None:
    few = (SMOOTH // 64) * 64
    image = Image.fromarray(few).convert(mode, **({"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}))
    key = {"P": 2, "L": int(np.asarray(image)[0, 0]) if mode == "L" else 0, "RGB": tuple(few[0, 0].tolist())}[mode]
    image.save(tmp_path / "a.png", transparency=key)
    found = read_photo(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        wanted = np.asarray(opened.convert("LA" if mode == "L" else "RGBA"))
    assert found.alpha is not None and 0 < (found.alpha == 0).mean() < 1
    np.testing.assert_array_equal(found.alpha, wanted[..., -1])
    np.testing.assert_array_equal(found.pixels, wanted[..., 0] if mode == "L" else wanted[..., :3])


def test_palette_without_transparency_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(SMOOTH).convert("P")
    for suffix in (".png", ".bmp", ".tif"):
        image.save(tmp_path / f"a{suffix}")
        same(read_photo(tmp_path / f"a{suffix}"), Photo(np.asarray(image.convert("RGB"))))


def inks() -> bytes:
    """A small profile of CMYK: a table from inks to Lab; cyan, magenta and yellow take away red, green and blue."""
    linear = bytes(range(256))
    grid = bytearray()
    for number in range(16):
        cyan, magenta, yellow, black = (number >> place & 1 for place in (3, 2, 1, 0))
        light = (1 - black) * (1 - (0.3 * cyan + 0.5 * magenta + 0.1 * yellow))
        a, b = (1 - black) * (75 * magenta - 37 * cyan), (1 - black) * (80 * yellow - 50 * cyan)
        grid += bytes([round(255 * max(0, light)), round(128 + max(-128, a)), round(128 + min(127, b))])
    matrix = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * linear + bytes(grid) + 3 * linear
    size = 128 + 4 + 12 + len(table)
    head = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    head = (head + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)).ljust(128, b"\0")
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_srgb_by_its_profile(tmp_path: Path, suffix: str) -> None:
    stored = np.zeros((16, 48, 4), np.uint8)
    stored[:, 16:32, 3], stored[:, 32:, 0] = 255, 255
    Image.fromarray(stored, "CMYK").save(tmp_path / f"a{suffix}", icc_profile=inks(), quality=100, subsampling=0)
    found = read_photo(tmp_path / f"a{suffix}")
    assert found.pixels.shape == (16, 48, 3) and found.about.profile is not None
    assert "sRGB" in ImageCms.getProfileDescription(io.BytesIO(found.about.profile))
    white, black, cyan = (found.pixels[8, at].astype(int) for at in (8, 24, 40))
    assert white.min() > 250 and black.max() < 5 and cyan[0] < cyan[1] - 50 and cyan[0] < cyan[2] - 50


def test_cmyk_without_a_profile_is_refused(tmp_path: Path) -> None:
    for suffix in (".jpg", ".tif"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(SMOOTH).convert("CMYK").save(path)
        with pytest.raises(ImageError, match="is CMYK without a colour profile; convert it with its printer's profile"):
            read_photo(path)
        Image.fromarray(SMOOTH).convert("CMYK").save(path, icc_profile=SRGB)  # a profile of other channels
        with pytest.raises(ImageError, match="colour profile that cannot be used"):
            read_photo(path)


@pytest.mark.parametrize("name, array, options", [
    ("32-bit float RGB", SMOOTH.astype(np.float32), {}),
    ("16-bit signed RGB", SMOOTH.astype(np.int16), {}),
    ("8-bit RGB with premultiplied alpha", np.dstack([SMOOTH, SMOOTH[..., 0]]), {"extrasamples": ["assocalpha"]}),
    ("8-bit RGB with 2 extra channels", np.dstack([SMOOTH, SMOOTH[..., :2]]), {"extrasamples": [0, 0]}),
    ("8-bit RGB compressed by ZSTD", SMOOTH, {"compression": "zstd"}),
])  # fmt: skip
def test_kinds_that_are_not_taken(tmp_path: Path, name: str, array: np.ndarray, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", **options)
    with pytest.raises(ImageError, match=f"a.tif: is {name}, not grey or RGB of 8 or 16 bits; convert it"):
        read_photo(tmp_path / "a.tif")


def test_what_a_format_cannot_hold() -> None:
    for photo, name, what in (
        (photo_of(np.uint16, 3), "a.jpg", "JPEG cannot hold 16 bits; write a.png"),
        (photo_of(np.uint8, 4), "a.JPG", "JPEG cannot hold transparency; write a.png"),
        (photo_of(np.uint16, 4), "a.jpeg", "JPEG cannot hold 16 bits and transparency"),
        (photo_of(np.uint16, 1), "a.webp", "WebP cannot hold 16 bits"),
        (Photo(np.zeros((1, 17000, 3), np.uint8)), "a.webp", "WebP cannot hold 17000 pixels in a row or column"),
    ):
        with pytest.raises(ImageError, match=what):
            check_fits(photo, Path(name))
    for name in ("a.gif", "a", "a.bmp"):
        with pytest.raises(ImageError, match=r"name it a\.png"):
            check_suffix(Path(name))


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_photo(path, photo_of(np.uint8, 3))
    before = path.read_bytes()
    with full_disk(1000), pytest.raises(OSError):
        write_photo(path, photo_of(np.uint8, 4))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_damaged_metadata_are_left_out_and_the_pixels_kept(tmp_path: Path) -> None:
    extra = chunk(b"iCCP", b"x\0\0" + b"not deflate") + chunk(b"eXIf", b"II*\0\xff\xff\xff\xff") + chunk(b"pHYs", b"12")
    found = read_photo(put(tmp_path, png_of(SMOOTH, extra=extra)))
    np.testing.assert_array_equal(found.pixels, SMOOTH)
    assert found.about.profile is None and found.about.density is None
    write_photo(tmp_path / "out.png", found)
    buffer = io.BytesIO((tmp_path / "out.png").read_bytes())
    with Image.open(buffer) as image:
        np.testing.assert_array_equal(np.asarray(image), SMOOTH)


def with_exif(folder: Path, exif: bytes, pixels: np.ndarray = SMOOTH) -> Path:
    """A JPEG file with a TIFF structure as its EXIF."""
    Image.fromarray(pixels).save(folder / "a.jpg", exif=b"Exif\0\0" + exif)
    return folder / "a.jpg"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_of_a_tiff_is_written_as_a_bare_structure(tmp_path: Path, suffix: str) -> None:
    """Its header once, where Pillow would read any number of them."""
    found = Image.Exif()
    found[271] = "Maker"
    Image.fromarray(SMOOTH).save(tmp_path / "a.tif", exif=found.tobytes())
    write_photo(tmp_path / f"out{suffix}", read_photo(tmp_path / "a.tif"))
    assert read_photo(tmp_path / f"out{suffix}").about.exif is not None
    data = (tmp_path / f"out{suffix}").read_bytes()
    assert data.count(b"Exif\0\0") == (suffix == ".jpg")
    assert suffix != ".png" or data[data.index(b"eXIf") + 4 :][:4] in (b"II*\0", b"MM\0*")


@pytest.mark.parametrize("folder, tag, value", [(EXIF, 0x9003, "2020:01:01 00:00:00"), (GPS, 1, "N")])
def test_exif_of_a_tiff_stays_without_any_text(tmp_path: Path, folder: int, tag: int, value: str) -> None:
    stored = Image.Exif()
    stored.get_ifd(folder)[tag] = value
    Image.fromarray(SMOOTH).save(tmp_path / "a.tif", exif=stored.tobytes())
    write_photo(tmp_path / "out.tif", read_photo(tmp_path / "a.tif"))
    for name in ("a.tif", "out.tif"):
        exif = read_photo(tmp_path / name).about.exif
        assert exif is not None
        found = Image.Exif()
        found.load(exif)
        assert found.get_ifd(folder) == {tag: value}


def test_values_of_another_type_are_left_out_of_a_tiff_and_the_others_stay(tmp_path: Path) -> None:
    """A latitude as text and a date as a fraction, as sloppy software writes them; Pillow writes neither."""
    texts = [(271, 2, b"Nu\0\0"), (306, 5, struct.pack("<I", 62)), (GPS, 4, struct.pack("<I", 70))]
    raw = b"II*\0" + struct.pack("<IH", 8, 3)
    for tag, kind, value in texts:
        raw += struct.pack("<HHI", tag, kind, 3 if kind == 2 else 1) + value
    raw = raw.ljust(62, b"\0") + struct.pack("<II", 1, 2)
    raw += struct.pack("<H", 2) + struct.pack("<HHI4s", 1, 2, 2, b"N") + struct.pack("<HHI4s", 2, 2, 4, b"51N\0")
    write_photo(tmp_path / "out.tif", read_photo(with_exif(tmp_path, raw + bytes(4))))
    with Image.open(tmp_path / "out.tif") as image:
        found = image.getexif()
        assert found[271] == "Nu" and 306 not in found and found.get_ifd(GPS) == {1: "N"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_of_either_type(tmp_path: Path, order: str, kind: int) -> None:
    value = struct.pack(f"{order}I", 6) if kind == 4 else struct.pack(f"{order}HH", 6, 0)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    path = with_exif(tmp_path, start + struct.pack(f"{order}HHHI4s", 1, 0x112, kind, 1, value) + bytes(4))
    photo = read_photo(path)
    assert photo.pixels.shape == (SMOOTH.shape[1], SMOOTH.shape[0], 3) and photo.about.exif is not None
    found = Image.Exif()
    found.load(photo.about.exif)
    assert found[0x112] == 1


def test_a_tag_that_stands_twice_moves_nothing(tmp_path: Path) -> None:
    tags = [(271, b"ab\0\0"), (271, b"ab\0\0"), (33432, b"cc\0\0")]
    raw = b"II*\0" + struct.pack("<IH", 8, 3)
    raw += b"".join(struct.pack("<HHI4s", tag, 2, 3, text) for tag, text in tags) + struct.pack("<I", 8)
    assert read_photo(with_exif(tmp_path, raw)).about.exif == raw[:-4] + bytes(4)  # without the next folder


@pytest.mark.parametrize("colours", [2, 4, 16, 200])
def test_a_palette_s_opacities_beside_a_long_text(tmp_path: Path, colours: int) -> None:
    """More text than Pillow unpacks, which would end the reading with an error of its own."""
    image = Image.fromarray(SMOOTH).quantize(colours)
    image.save(tmp_path / "few.png", transparency=bytes(range(colours)))
    data = (tmp_path / "few.png").read_bytes()
    at = data.index(b"IDAT") - 4
    path = put(tmp_path, data[:at] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))) + data[at:])
    found = read_photo(path)
    assert found.alpha is not None
    np.testing.assert_array_equal(found.alpha, np.asarray(image))


def test_a_grey_profile_is_not_given_to_webp_which_has_no_grey(tmp_path: Path) -> None:
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    for suffix, kept in ((".png", True), (".webp", False)):
        write_photo(tmp_path / f"a{suffix}", Photo(SMOOTH[..., 0].copy(), None, About(grey)))
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.mode == ("L" if kept else "RGB") and ("icc_profile" in image.info) is kept
