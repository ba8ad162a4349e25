"""Headers and pixels of every format: kinds, sizes that are refused before decoding, what is no file, damage."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from pipelines.data import formats
from pipelines.data.images import ImageError, read_rgb, size_of
from pipelines.data.photofile import read_photo
from tests.helpers.image_files import chunk, png_of, put, tiff_of

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (37, 53, 4), dtype=np.uint16)


def refused(path: Path) -> str:
    """The line that each reader gives, without the path."""
    lines = set()
    for read in (read_rgb, size_of, read_photo):
        with pytest.raises(ImageError) as caught:
            read(path)
        lines.add(str(caught.value))
    assert len(lines) == 1
    line = lines.pop()
    assert line.startswith(f"{path}: ") and "\n" not in line and "; " in line
    return line.removeprefix(f"{path}: ")


def decoded(path: Path) -> tuple[formats.Header, Any]:
    with formats.open_file(path) as file:
        header = formats.read_header(file, path)
        formats.check_end(file, header, path)
        file.seek(0)
        return header, formats.decode(formats.read_bytes(file, header, path), header, path)


def saved(folder: Path, kind: str, mode: str, **options: Any) -> tuple[Path, np.ndarray]:
    """A file that Pillow writes, and the pixels that it reads from it."""
    path = folder / f"a.{kind}"
    Image.fromarray(PIXELS).convert(mode).save(path, kind, **options)
    with Image.open(path) as image:
        plain = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
        return path, np.asarray(image.convert(plain))


@pytest.mark.parametrize("kind, mode, name", [
    ("PNG", "1", "1-bit grey"), ("PNG", "L", "8-bit grey"), ("PNG", "P", "8-bit palette"),
    ("PNG", "LA", "8-bit grey with alpha"), ("PNG", "RGBA", "8-bit RGB with alpha"),
    ("JPEG", "L", "8-bit grey"), ("JPEG", "RGB", "8-bit RGB"), ("JPEG", "CMYK", "8-bit CMYK"),
    ("BMP", "1", "1-bit grey"), ("BMP", "L", "8-bit grey"), ("BMP", "P", "8-bit palette"), ("BMP", "RGB", "8-bit RGB"),
    ("TIFF", "1", "1-bit grey"), ("TIFF", "L", "8-bit grey"), ("TIFF", "P", "8-bit palette"),
    ("TIFF", "LA", "8-bit grey with alpha"), ("TIFF", "RGB", "8-bit RGB"), ("TIFF", "RGBA", "8-bit RGB with alpha"),
    ("TIFF", "CMYK", "8-bit CMYK"), ("WEBP", "RGB", "8-bit RGB"), ("WEBP", "RGBA", "8-bit RGB"),
])  # fmt: skip
def test_kinds_are_named_and_decoded_as_pillow_does(tmp_path: Path, kind: str, mode: str, name: str) -> None:
    path, pixels = saved(tmp_path, kind, mode)
    header, found = decoded(path)
    assert (header.mode, header.height, header.width) == (name, 37, 53)
    np.testing.assert_array_equal(found, pixels)
    assert found.nbytes == header.bytes


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour, channels", [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_png_of_16_bits(tmp_path: Path, colour: int, channels: int, interlaced: bool) -> None:
    pixels = DEEP[..., :channels]
    header, found = decoded(put(tmp_path, png_of(pixels, depth=16, colour=colour, interlaced=interlaced)))
    assert header.depth == 16
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("options", [
    {}, {"compression": "lzw"}, {"compression": "deflate", "predictor": True}, {"compression": "packbits"},
    {"tile": (16, 16), "compression": "lzw"}, {"rowsperstrip": 5}, {"planarconfig": "separate"}, {"bigtiff": True},
    {"byteorder": ">", "predictor": True, "compression": "lzw"},
])  # fmt: skip
def test_tiff_of_16_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels = DEEP[..., :3]
    path = tmp_path / "a.tif"
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(path, stored, photometric="rgb", **options)
    header, found = decoded(path)
    assert header.mode == "16-bit RGB"
    np.testing.assert_array_equal(found, pixels)


def test_tiff_with_white_as_zero_and_with_jpeg(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(decoded(tmp_path / "a.tif")[1], ~DEEP[..., 0])
    path, pixels = saved(tmp_path, "TIFF", "RGB", compression="jpeg")
    np.testing.assert_array_equal(decoded(path)[1], pixels)


@pytest.mark.parametrize("scale", [1, 257])
def test_the_palette_of_a_tiff_is_of_16_bits_or_of_8(tmp_path: Path, scale: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", PIXELS[..., 0], photometric="palette", colormap=colours * np.uint16(scale))
    np.testing.assert_array_equal(decoded(tmp_path / "a.tif")[1], colours.T[PIXELS[..., 0]])


def test_tiff_with_white_as_zero_keeps_its_alpha(tmp_path: Path) -> None:
    pixels = PIXELS[..., :2]
    path = put(tmp_path, tiff_of(pixels.tobytes(), 37, 53, t262=0, t277=2, t338=2), "a.tif")
    photo = read_photo(path)
    np.testing.assert_array_equal(photo.pixels, 255 - pixels[..., 0])
    np.testing.assert_array_equal(photo.alpha, pixels[..., 1])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_ycbcr_in_tiff_is_read_as_rgb_from_jpeg_alone(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(PIXELS).convert("YCbCr").save(path, compression=compression)
    with pytest.raises(ImageError, match="is 8-bit YCbCr, not 8-bit RGB; convert it"):
        read_rgb(path)
    with pytest.raises(ImageError, match="is 8-bit YCbCr, not grey or RGB of 8 or 16 bits; convert it"):
        read_photo(path)
    with pytest.raises(ImageError, match="is 8-bit YCbCr"):
        size_of(path, kind="rgb")
    Image.fromarray(PIXELS).convert("YCbCr").save(path, compression="jpeg")
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_rgb(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name, tags", [
    ("4-bit grey", {"t258": 4}), ("2-bit grey", {"t258": 2, "t262": 0}), ("12-bit grey", {"t258": 12}),
    ("4-bit palette", {"t258": 4, "t262": 3}), ("8-bit CIELAB", {"t262": 8}),
    ("8-bit grey with its bits in reverse order", {"t266": 2}),
    ("8-bit grey with predictor FLOATINGPOINT", {"t317": 3}), ("1-bit grey with predictor HORIZONTAL",
     {"t258": 1, "t317": 2}), (f"1-bit grey compressed by {tifffile.COMPRESSION(4).name}", {"t258": 1, "t259": 4}),
    ("8-bit grey compressed by ZSTD", {"t259": 50000}),
])  # fmt: skip
def test_what_is_not_read_from_tiff_is_named_and_not_called_damaged(
    tmp_path: Path, name: str, tags: dict[str, int]
) -> None:
    size = 20 * -(-30 * tags.get("t258", 8) // 8)
    path = put(tmp_path, tiff_of(bytes(size), 20, 30, **tags), "a.tif")
    with pytest.raises(ImageError) as caught:
        read_photo(path)
    assert str(caught.value) == (
        f"{path}: is {name}, not grey or RGB of 8 or 16 bits; convert it: `convert in.tif out.png`"
    )
    with pytest.raises(ImageError, match=f"is {name}, not 8-bit RGB; convert it"):
        read_rgb(path)


def test_a_tiff_without_its_number_of_bits_is_damaged(tmp_path: Path) -> None:
    data = tiff_of(PIXELS.tobytes(), 37, 53, t262=2, t277=3)
    lost = data.replace(struct.pack("<HH", 258, 4), struct.pack("<HH", 255, 4))
    assert "is damaged (its header is incomplete)" in refused(put(tmp_path, lost, "a.tif"))
    changed = tiff_of(PIXELS.tobytes(), 37, 53, t258=1, t262=2, t277=3)  # more bytes than its pixels would have
    assert "is damaged (its header is incomplete)" in refused(put(tmp_path, changed, "a.tif"))


@pytest.mark.parametrize("kind, options", [("TIFF", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
def test_training_reads_rgb_of_8_bits_from_every_format(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    path, _ = saved(tmp_path, kind, "RGB", **options)
    np.testing.assert_array_equal(read_rgb(path), PIXELS)
    assert size_of(path, kind="rgb") == (37, 53)
    grey, _ = saved(tmp_path, "TIFF" if kind == "WEBP" else kind, "L")
    with pytest.raises(ImageError, match="is 8-bit grey, not 8-bit RGB; convert"):
        read_rgb(grey)


def bomb(folder: Path, side: int = 22_000) -> Path:
    """A small PNG that decodes to 1.45 GB: 22,000 black rows."""
    packer = zlib.compressobj(9)
    rows = packer.compress(100 * bytes(1 + 3 * side)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = rows + (side // 100 - 1) * rows[2:]  # without the first two bytes, which begin a stream
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return put(folder, formats.PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_a_small_file_with_enormous_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    path = bomb(tmp_path)
    assert path.stat().st_size < 1.5e6
    before, start = psutil.Process().memory_info().rss, time.process_time()
    line = refused(path)
    assert "22000x22000 pixels, 484 megapixels, and at most 450 are read" in line
    assert psutil.Process().memory_info().rss - before < 50e6 and time.process_time() - start < 2


def test_a_photograph_of_182_megapixels_is_read(tmp_path: Path) -> None:
    """More than Pillow opens: its own limit is 179."""
    Image.new("L", (13_500, 13_500), 7).save(tmp_path / "a.jpg")
    assert size_of(tmp_path / "a.jpg") == (13_500, 13_500)
    assert read_photo(tmp_path / "a.jpg").pixels.shape == (13_500, 13_500)


def webp_claiming(side: int) -> bytes:
    body = b"VP8X\x0a\0\0\0\0\0\0\0" + 2 * (side - 1).to_bytes(3, "little")
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


def test_every_format_is_bounded_by_its_header(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(PIXELS).save(jpeg, "JPEG")
    at = jpeg.getvalue().index(b"\xff\xc0") + 5
    bmp = io.BytesIO()
    Image.fromarray(PIXELS).save(bmp, "BMP")
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, PIXELS, photometric="rgb")
    huge = bytearray(tiff.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(huge))) as opened:
        for name in ("ImageWidth", "ImageLength"):
            tag = opened.pages.first.tags[name]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", huge, tag.valueoffset, 60_000)
    for data in (
        jpeg.getvalue()[:at] + b"\xff\xff\xff\xff" + jpeg.getvalue()[at + 4 :],
        bmp.getvalue()[:18] + struct.pack("<ii", 60_000, 60_000) + bmp.getvalue()[26:],
        bytes(huge),
        webp_claiming(60_000),
    ):
        assert "at most 450 are read" in refused(put(tmp_path, data))


def test_the_free_memory_bounds_large_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 10_000, 5_000, 8, 2, 0, 0, 0)
    path = put(tmp_path, png_of(PIXELS)[:8] + chunk(b"IHDR", header) + png_of(PIXELS)[33:])
    monkeypatch.setattr(formats, "free_ram", lambda: 100_000_000)
    with pytest.raises(ImageError, match=r"needs 0\.3 GB of memory .*10000x5000 pixels.* 0\.1 GB are free; free some"):
        read_rgb(path)


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.append(refused(tmp_path / "pipe.png")), daemon=True)
    thread.start()
    thread.join(10)
    assert lines == ["is a named pipe, not a file; remove it"]
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        server.bind("s.png")
        assert refused(tmp_path / "s.png") == "is a socket, not a file; remove it"
    (tmp_path / "null.png").symlink_to("/dev/null")
    assert refused(tmp_path / "null.png") == "is a device, not a file; remove it"
    (tmp_path / "dangling.png").symlink_to("nowhere")
    assert refused(tmp_path / "dangling.png") == "is a link to nowhere, which does not exist; remove it"
    (tmp_path / "circle.png").symlink_to("circle.png")
    assert "Too many levels of symbolic links" in refused(tmp_path / "circle.png")


def test_several_pictures_and_motion_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for _ in range(3):
            writer.write(PIXELS, photometric="rgb", contiguous=False)
    assert refused(tmp_path / "a.tif") == "holds 3 pictures; save each as a file of its own"
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(PIXELS, photometric="rgb")
        writer.write(PIXELS[::4, ::4], photometric="rgb", subfiletype=1)  # a thumbnail
    np.testing.assert_array_equal(read_rgb(tmp_path / "b.tif"), PIXELS)
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert refused(tmp_path / "a.webp") == "is animated; give a still photograph"


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files_of_other_formats(tmp_path: Path, kind: str, part: float) -> None:
    path, _ = saved(tmp_path, kind, "RGB", **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    for read in (read_rgb, size_of, read_photo):
        with pytest.raises(ImageError, match="is truncated|is damaged|is empty|is not a PNG"):
            read(path)


def seeds(folder: Path) -> dict[str, bytes]:
    """A small file of every format and kind."""
    found = {"png16": png_of(DEEP[..., :3], depth=16), "png16a": png_of(DEEP[..., :2], depth=16, colour=4)}
    tifffile.imwrite(folder / "t.tif", DEEP[..., :3], photometric="rgb", tile=(16, 16), compression="deflate")
    found["tifftile"] = (folder / "t.tif").read_bytes()
    for kind, mode, options in (
        ("PNG", "P", {}), ("PNG", "RGBA", {}), ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}), ("BMP", "P", {}),
        ("TIFF", "RGBA", {"compression": "tiff_deflate"}), ("TIFF", "P", {}), ("WEBP", "RGBA", {}), ("BMP", "RGB", {}),
    ):  # fmt: skip
        found[f"{kind}{mode}"] = saved(folder, kind, mode, **options)[0].read_bytes()
    return found


def test_damage_anywhere_ends_in_one_line(tmp_path: Path) -> None:
    """A fuzzer, seeded: 40 cases a kind; each is read or refused in one line that names the file."""
    draw = random.Random(0)
    refusals = 0
    for name, whole in seeds(tmp_path).items():
        path = tmp_path / f"{name}.png"
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                end = min(200, len(data)) if draw.random() < 0.6 else len(data)
                data[draw.randrange(end)] = draw.choice([0, 255, 128, draw.randrange(256)])
            path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)
            for read in (read_photo, read_rgb, size_of):
                try:
                    read(path)
                except ImageError as error:
                    refusals += 1
                    assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refusals > 500
