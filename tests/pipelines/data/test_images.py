"""Reading and writing of image files: real ones, whole, truncated, damaged and of other modes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipelines.data.images import TRAIN_IDS, ImageError, read_labels, read_rgb, size_of, write_png
from tests.helpers.image_files import chunk, png_of, put

HEIGHT, WIDTH = 37, 53
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


PNG = png_of(PIXELS)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    smooth = np.kron(PIXELS[:8, :9], np.ones((40, 40, 1), np.uint8))
    Image.fromarray(smooth).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The one line of the error, without the path, which must be in it."""
    with pytest.raises(ImageError) as caught:
        read(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and ";" in line, line
    return line.replace(str(path), "")


def saved(folder: Path, mode: str) -> Path:
    image = Image.fromarray(PIXELS).convert({"I;16": "I"}.get(mode, mode))
    path = folder / f"{mode.replace(';', '')}.png"
    image.convert(mode).save(path)
    return path


def test_png_reads_as_pillow_does(shared: Path) -> None:
    path = min((shared / "data/cityscapes-mini").rglob("*_leftImg8bit.png"))
    pixels = read_rgb(path)
    with Image.open(path) as image:
        assert np.array_equal(pixels, np.asarray(image))
    assert pixels.dtype == np.uint8 and pixels.shape == (1024, 2048, 3) and size_of(path) == (1024, 2048)
    assert pixels.flags.writeable  # torch.from_numpy warns otherwise


@pytest.mark.parametrize("interlaced", [False, True])
def test_handmade_png_reads_exactly(tmp_path: Path, interlaced: bool) -> None:
    path = put(tmp_path, png_of(PIXELS, interlaced=interlaced))
    assert np.array_equal(read_rgb(path), PIXELS) and size_of(path, kind="rgb") == (HEIGHT, WIDTH)


def test_bytes_after_the_end_are_no_harm(tmp_path: Path) -> None:
    path = put(tmp_path, PNG + b"left by a camera")
    assert np.array_equal(read_rgb(path), PIXELS) and size_of(path) == (HEIGHT, WIDTH)


def test_jpeg_reads_whatever_its_suffix(tmp_path: Path) -> None:
    path = put(tmp_path, jpeg(), "street.png")
    with Image.open(path) as image:
        assert np.array_equal(read_rgb(path), np.asarray(image))
    assert size_of(path, kind="rgb") == (320, 360)


@pytest.mark.parametrize("read", [read_rgb, read_labels, size_of])
def test_missing_or_foreign_files(tmp_path: Path, read: Callable[[Path], object]) -> None:
    assert "no such file" in refusal(read, tmp_path / "none.png")
    assert "cannot be opened (Is a directory)" in refusal(read, tmp_path)
    assert "is empty" in refusal(read, put(tmp_path, b""))
    assert "not a PNG or JPEG" in refusal(read, put(tmp_path, b"Not a picture, whatever its name says."))
    assert "not a PNG or JPEG" in refusal(read, put(tmp_path, b"GIF89a" + bytes(60)))


@pytest.mark.parametrize("keep", [10, 20, 32, 33, 40, 500, len(PNG) // 2, len(PNG) - 1, len(PNG) - 12, len(PNG) - 14])
def test_truncated_png_is_refused_wherever_it_ends(tmp_path: Path, keep: int) -> None:
    path = put(tmp_path, PNG[:keep])
    assert "is truncated" in refusal(read_rgb, path)
    assert "is truncated" in refusal(size_of, path)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.9, 0.999999])
def test_truncated_photograph_is_refused(shared: Path, tmp_path: Path, part: float) -> None:
    data = min((shared / "data/camvid").rglob("*_leftImg8bit.png")).read_bytes()
    path = put(tmp_path, data[: int(part * len(data))])
    assert "is truncated" in refusal(read_rgb, path)
    assert "is truncated" in refusal(size_of, path)


@pytest.mark.parametrize("cut", [1, 2, 100, 3000, 6000])
def test_truncated_jpeg_is_refused(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some library might have left it
    path = put(tmp_path, jpeg()[:-cut])
    assert "is truncated" in refusal(read_rgb, path)
    assert "is truncated" in refusal(size_of, path)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0, "quality": 100}])
def test_a_truncated_jpeg_that_was_given_an_end_is_refused(
    tmp_path: Path, part: float, options: dict[str, int]
) -> None:
    """As some programs leave what they have loaded of a file; Pillow reads the rest of it as grey."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (97, 83, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    path = put(tmp_path, data[: int(part * len(data))] + b"\xff\xd9", "a.jpg")
    assert np.asarray(Image.open(path)).shape == pixels.shape
    assert "is truncated" in refusal(read_rgb, path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True}])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (97, 83), (700, 900)])
def test_whole_jpegs_are_read_as_pillow_reads_them(
    tmp_path: Path, size: tuple[int, int], options: dict[str, bool]
) -> None:
    """Also with the bytes of the end in their EXIF, and with another file behind them, as some cameras append one."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xd9", **options)
    for more in (b"", b"another", buffer.getvalue()):
        path = put(tmp_path, buffer.getvalue() + more, "a.jpg")
        np.testing.assert_array_equal(read_rgb(path), np.asarray(Image.open(path)))
        assert size_of(path) == size


@pytest.mark.parametrize(
    "at",
    [
        PNG.index(b"IDAT") + 4,
        PNG.index(b"IDAT") + 300,
        PNG.rindex(b"IDAT") + 20,
        PNG.rindex(b"IEND") - 6,
        len(PNG) - 1,
    ],
    ids=["deflate header", "pixels", "last pixels", "last CRC", "CRC of IEND"],
)
def test_flipped_bit_is_refused(tmp_path: Path, at: int) -> None:
    damaged = bytearray(PNG)
    damaged[at] ^= 1
    path = put(tmp_path, bytes(damaged))
    assert "is damaged" in refusal(read_rgb, path)


@pytest.mark.parametrize("at", [16, 22, 24, 30])
def test_flipped_bit_in_the_header_is_refused_by_size_of(tmp_path: Path, at: int) -> None:
    damaged = bytearray(PNG)
    damaged[at] ^= 1
    assert "header" in refusal(size_of, put(tmp_path, bytes(damaged)))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(tmp_path: Path, width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert "header" in refusal(size_of, put(tmp_path, data))


def test_png_with_valid_chunks_but_too_few_pixels(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS[:-3]))
    data = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert "is damaged" in refusal(read_rgb, put(tmp_path, data))


def test_an_enormous_header_gives_a_line_and_no_crash(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    data = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert "is damaged" in refusal(read_rgb, put(tmp_path, data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_passes_unnoticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(PNG)
    damaged[data.draw(st.integers(0, len(PNG) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = put(tmp_path_factory.getbasetemp(), bytes(damaged[: data.draw(st.integers(0, len(PNG)))]))
    try:
        pixels = read_rgb(path)
    except ImageError:
        return
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("L", "8-bit grey,"),
        ("I;16", "16-bit grey,"),
        ("P", "8-bit palette,"),
        ("RGBA", "8-bit RGB with alpha,"),
        ("LA", "8-bit grey with alpha,"),
        ("1", "1-bit grey,"),
    ],
)
def test_other_modes_are_named_with_a_remedy(tmp_path: Path, mode: str, named: str) -> None:
    path = saved(tmp_path, mode)
    line = refusal(read_rgb, path)
    assert f"is {named} not 8-bit RGB" in line and "convert in.png" in line
    assert refusal(lambda p: size_of(p, kind="rgb"), path) == line
    assert size_of(path) == (HEIGHT, WIDTH)
    if mode != "I;16":  # the PIL remedy the line offers does cure it
        assert '.convert("RGB")' in line
        Image.open(path).convert("RGB").save(path)
        assert read_rgb(path).shape == (HEIGHT, WIDTH, 3)


def test_sixteen_bit_colour_and_transparent_colour(tmp_path: Path) -> None:
    deep = png_of(PIXELS.astype(np.uint16) * 257, depth=16)
    assert "is 16-bit RGB, not" in refusal(read_rgb, put(tmp_path, deep))
    keyed = png_of(PIXELS, extra=chunk(b"tRNS", bytes(6)))
    assert "transparent colour" in refusal(read_rgb, put(tmp_path, keyed))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_that_is_not_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "grey.jpg"
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert "not 8-bit RGB" in refusal(read_rgb, path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "1"])
def test_labels_must_be_one_8_bit_channel(tmp_path: Path, mode: str) -> None:
    line = refusal(read_labels, saved(tmp_path, mode))
    assert "not 8-bit grey" in line and "_gtFine_labelIds.png" in line
    assert ("palette" in line.split(";")[0]) == (mode == "P")


def test_the_palette_remedy_keeps_the_ids(tmp_path: Path) -> None:
    ids = np.arange(34, dtype=np.uint8)[None]
    path = tmp_path / "labels.png"
    image = Image.fromarray(ids).convert("P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image)).save(path)
    assert np.array_equal(read_labels(path), TRAIN_IDS[ids])


@pytest.mark.parametrize(("label_id", "train_id"), [(7, 0), (8, 1), (11, 2), (23, 10), (26, 13), (28, 15), (33, 18)])
def test_label_ids_known_answers(label_id: int, train_id: int) -> None:
    assert TRAIN_IDS[label_id] == train_id


def test_label_ids_ignored_and_complete() -> None:
    assert all(TRAIN_IDS[i] == 255 for i in (0, 1, 6, 9, 10, 14, 16, 18, 29, 30, *range(34, 256)))
    assert sorted(TRAIN_IDS[TRAIN_IDS != 255]) == list(range(19))
    with pytest.raises(ValueError, match="read-only"):
        TRAIN_IDS[0] = 0


@given(st.lists(st.integers(0, 34), min_size=1, max_size=64))
@settings(max_examples=30, deadline=None)
def test_labels_are_mapped_pixel_by_pixel(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "ids.png"
    write_png(path, np.array(ids, np.uint8)[None])
    assert read_labels(path).tolist() == [[int(TRAIN_IDS[i]) for i in ids]]


def test_train_ids_under_the_name_of_label_ids_are_refused(tmp_path: Path) -> None:
    """Read as label ids they would give a MIoU of other classes."""
    path = tmp_path / "a_gtFine_labelIds.png"
    write_png(path, np.array([[0, 10, 13, 255]], np.uint8))
    line = refusal(read_labels, path)
    assert (
        "holds 255 and otherwise no value above 18" in line and "these are train ids" in line and "labelIds.png" in line
    )


@pytest.mark.parametrize("value", [35, 87, 254])
def test_a_value_that_is_no_label_id_is_refused(tmp_path: Path, value: int) -> None:
    write_png(tmp_path / "a.png", np.array([[7, 26, 255, value]], np.uint8))
    assert f"holds the value {value}, but label ids are 0 to 33" in refusal(read_labels, tmp_path / "a.png")


@pytest.mark.parametrize("ids", [[7, 255, 26], [255, 255], [33, 34, 0]])
def test_255_among_label_ids_is_void(tmp_path: Path, ids: list[int]) -> None:
    write_png(tmp_path / "a.png", np.array([ids], np.uint8))
    assert read_labels(tmp_path / "a.png").tolist() == [[int(TRAIN_IDS[i]) for i in ids]]


def test_real_labels_hold_train_ids(shared: Path) -> None:
    labels = read_labels(min((shared / "data/cityscapes-mini").rglob("*_labelIds.png")))
    assert labels.dtype == np.uint8 and labels.shape == (1024, 2048)
    assert set(np.unique(labels)) <= {*range(19), 255}
    assert (labels == 0).mean() > 0.1  # a road before the car


def test_write_png_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "made" / "street.png"
    write_png(path, PIXELS[:, ::-1])  # not contiguous
    assert np.array_equal(read_rgb(path), PIXELS[:, ::-1])
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), PIXELS[:, ::-1])


@pytest.mark.parametrize("array", [PIXELS / 255, PIXELS[..., :2], PIXELS[None], PIXELS[:0], PIXELS.astype(np.int64)])
def test_write_png_refuses_what_it_cannot_write(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "street.png"
    assert "uint8" in refusal(lambda p: write_png(p, array), path)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "street.png"
    write_png(path, PIXELS)

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left on its disk"):
        write_png(path, 255 - PIXELS)
    assert np.array_equal(read_rgb(path), PIXELS) and list(tmp_path.iterdir()) == [path]


def test_a_webp_that_denies_its_alpha_is_refused(tmp_path: Path) -> None:
    """Its flags say RGB, but the decoder gives what the file holds."""
    pixels, exif = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8), Image.Exif()
    exif[271] = "Maker"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exif=exif)
    data = bytearray(buffer.getvalue())
    data[20] &= ~16
    assert "its header is of 8-bit RGB, its pixels are (9, 12, 4)" in refusal(read_rgb, put(tmp_path, bytes(data)))
