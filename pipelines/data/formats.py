"""The formats of image files: PNG, JPEG, TIFF, WebP and BMP. What a header says, and the pixels as they are stored.

The format follows from the first bytes, not from the suffix. Every size is checked before a pixel is decoded: a small
file can decode to any number of bytes. Whatever a decoder raises becomes an ImageError, one line that names the file.

PNG is decoded with spng, which is as fast as any decoder at hand and the only one of them that survives damaged
files: imagecodecs' own png_decode and torchvision can end the process, and PIL accepts wrong checksums of pixels.
What spng cannot read (16 bits without alpha) goes through png_decode after its filters and its number of bytes were
checked.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

from pipelines.runtime.memory import free_ram
from pipelines.text import one_line

if TYPE_CHECKING:
    import tifffile

MOST_PIXELS = 450_000_000
"""The largest image that is read. The largest photographs that cameras write today have 407 megapixels (four shifted
exposures of a medium-format sensor); a file of 1.4 MB can claim 484, which decode to 1.45 GB."""

_UNCHECKED = 256 * 2**20  # bytes that are decoded without a look at the free memory, which would cost time per image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END, _JPEG_END = b"\0\0\0\0IEND\xaeB`\x82", b"\xff\xd9"
_JPEG_SEQUENTIAL, _JPEG_SCAN = (0xC0, 0xC1), 0xDA
_JPEG_AHEAD = 32  # bytes
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey", 6: "RGB"}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIL_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error, MemoryError),
    Image.DecompressionBombError,
)
# PIL warns of damaged metadata, in lines of its own; the metadata are then left out.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_PIL: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_PIL_MODES = {"1": (1, "grey"), "L": (8, "grey"), "P": (8, "palette"), "RGB": (8, "RGB"), "CMYK": (8, "CMYK")}
_LARGEST_TILE = 2**22  # pixels of a tile of a TIFF image that is smaller than its tiles
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
_CHANNELS = {"grey": 1, "palette": 1, "RGB": 3, "CMYK": 4}
_TIFF_COMPRESSIONS = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
TIFF_DEPTHS = (1, 8, 16)
"""Bits of a channel that are decoded from TIFF."""


Chunks = dict[bytes, list[memoryview]]
"""The data of a PNG's chunks by kind, in the order of the file."""


class ImageError(ValueError):
    """An image that cannot be used: one line with the file, what is wrong with it, and the remedy."""


class Header(NamedTuple):
    """What the first bytes of an image file say.

    Attributes:
        format: PNG, JPEG, TIFF, WebP or BMP.
        depth: bits of a channel.
        colour: grey, RGB, palette, CMYK or the name of what cannot be read.
        alpha: whether there is a channel of opacity.
    """

    format: str
    height: int
    width: int
    depth: int
    colour: str
    alpha: bool = False

    @property
    def mode(self) -> str:
        """Depth and channels in words, such as "8-bit RGB with alpha"."""
        return f"{self.depth}-bit {self.colour}{' with alpha' * self.alpha}"

    @property
    def bytes(self) -> int:
        """Size of the decoded pixels."""
        channels = (3 if self.colour == "palette" else _CHANNELS.get(self.colour, 3)) + self.alpha
        return self.height * self.width * channels * (2 if self.depth > 8 else 1)


def open_file(path: Path) -> BinaryIO:
    """Open an image file. A named pipe, which would block, a device and a socket are refused.

    Raises:
        ImageError: it is missing, cannot be opened, or is no file.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
            raise ImageError(f"{path}: is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file; remove it")
        return path.open("rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise ImageError(f"{path}: is a link to {os.readlink(path)}, which does not exist; remove it") from None
        raise ImageError(f"{path}: no such file; correct the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); give a readable file") from None


def read_header(file: BinaryIO, path: Path) -> Header:
    """Format, size and mode of the image in a file.

    Raises:
        ImageError: no image, a damaged header, more than one picture, or more pixels than are read.
    """
    start = file.read(33)
    if start.startswith(PNG_SIGNATURE):
        found = _png_header(start, path)
    elif start.startswith(b"\xff\xd8\xff"):
        found = _pil_header("JPEG", file, path)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        found = _webp_header(start, path)
    elif start.startswith(_TIFF_STARTS):
        found = _tiff_header(file, path)
    elif start.startswith(b"BM") and len(start) == 33:
        found = _pil_header("BMP", file, path)
    else:
        what = "is not a PNG or JPEG file, nor TIFF, WebP or BMP" if start else "is empty"
        raise ImageError(f"{path}: {what}; replace the file or remove it")
    if found.height * found.width > MOST_PIXELS:
        raise ImageError(
            f"{path}: is damaged or too large: its header says {found.width}x{found.height} pixels, "
            f"{found.height * found.width / 1e6:.0f} megapixels, and at most {MOST_PIXELS / 1e6:.0f} are read; "
            "replace the file or make the image smaller"
        )
    return found


def check_end(file: BinaryIO, header: Header, path: Path) -> None:
    """Check that a file does not end too early. It is decoded only where its last bytes are not the end of its format.

    Raises:
        ImageError: it is truncated.
    """
    size = file.seek(0, os.SEEK_END)
    if header.format in ("PNG", "JPEG"):
        file.seek(max(0, size - len(_PNG_END)))
        end = file.read()
        if end != _PNG_END and not end.endswith(_JPEG_END):
            file.seek(0)
            decode(read_bytes(file, header, path), header, path)
        return
    file.seek(0)
    start = file.read(8)
    stated = {"WebP": 8 + int.from_bytes(start[4:], "little"), "BMP": int.from_bytes(start[2:6], "little")}
    if size < stated.get(header.format, 0):
        raise truncated(path)  # that of a TIFF file showed with its header


def read_bytes(file: BinaryIO, header: Header, path: Path) -> bytes:
    """The bytes of a file, where there is memory for them and for its pixels, twice: as decoded, and as used.

    Raises:
        ImageError: there is too little memory, or the file cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    needed = size + 2 * header.bytes
    if needed > _UNCHECKED and needed > (free := free_ram()):
        raise ImageError(
            f"{path}: needs {needed / 1e9:.2g} GB of memory to be decoded ({header.width}x{header.height} pixels), and "
            f"{free / 1e9:.2g} GB are free; free some, or make the image smaller"
        )
    try:
        return file.read()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); give a readable file") from None


def decode(data: bytes, header: Header, path: Path, *, chunks: Chunks | None = None) -> NDArray[Any]:
    """The pixels of a whole file as stored: (H, W) or (H, W, channels), uint8 or uint16, colours of a palette as RGB.

    Args:
        chunks: of a PNG, where they are at hand; their checksums are not checked again.

    Raises:
        ImageError: it is truncated or damaged.
    """
    if header.format == "PNG":
        return _decode_png(data, chunks or read_chunks(data, path), header, path)
    if header.format == "TIFF":
        with tiff_page(io.BytesIO(data), path) as page:
            return _decode_tiff(data, page, header)
    # A global of PIL's that other libraries set; a truncated image would then be read, the rest of it grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    data = _without_end(data) if header.format == "JPEG" else data
    with pil_image(header.format, io.BytesIO(data), path) as image:
        return np.array(image.convert("RGB" if image.mode == "P" else "L") if image.mode in "P1" else image)


def _without_end(data: bytes) -> bytes:
    """A JPEG with zeros in place of its marker of the end.

    What lacks in front of that marker, libjpeg fills with grey, and PIL drops its warning; so read files whose second
    half was lost and that a program closed with the marker. Without it PIL says that the file is truncated. The zeros
    are for libjpeg, which reads a few bytes ahead.

    Files of several scans, as progressive ones are, stay as they are: libjpeg looks for their end before it decodes.
    """
    at, channels = 2, 0
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # before a marker may stand any number of them
            at += 1
            continue
        if kind in _JPEG_SEQUENTIAL:
            channels = data[at + 9]
        if kind == _JPEG_SCAN:
            end = data.find(_JPEG_END, at) if data[at + 4] == channels else -1  # else a scan for each channel
            return data if end < 0 else data[:end] + bytes(_JPEG_AHEAD)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data


@contextmanager
def pil_image(name: str, file: BinaryIO, path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image opened by PIL as this very format, whose errors become an ImageError.

    PIL's own limit of pixels does not apply: it is lower than photographs are large, and `read_header` has one.
    """
    try:
        file.seek(0)
        with _PIL[name](file) as image:
            yield image
    except ImageError:
        raise
    except _PIL_ERRORS as error:
        if "truncated" in str(error).lower():
            raise truncated(path) from None
        raise damaged(path, _reason(error)) from None


def read_chunks(data: bytes, path: Path) -> Chunks:
    """The chunks of a PNG, after a check of their checksums: decoders stop at the last pixel.

    Raises:
        ImageError: it is truncated, or a checksum is wrong.
    """
    view, at, kind = memoryview(data), len(PNG_SIGNATURE), b""
    found: Chunks = {}
    while kind != b"IEND":
        if at + 12 > len(data):
            raise truncated(path)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise truncated(path)
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise damaged(path, f"wrong checksum at byte {at}")
        found.setdefault(kind, []).append(view[at + 8 : end])
        at = end + 4
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def truncated(path: Path) -> ImageError:
    """The error of a file that ends too early."""
    return ImageError(f"{path}: is truncated (the file ends too early); copy or download it again")


def damaged(path: Path, reason: str) -> ImageError:
    """The error of a file that cannot be decoded."""
    return ImageError(f"{path}: is damaged ({reason}); copy or download it again")


def _reason(error: BaseException) -> str:
    """A decoder's message without the address of the file object."""
    return one_line(str(error).split(" <_io")[0].splitlines()[0]) if str(error) else type(error).__name__


def _png_header(start: bytes, path: Path) -> Header:
    if len(start) < 33:
        raise truncated(path)
    length, kind, width, height, depth, colour = struct.unpack(">I4sIIBB", start[8:26])
    (crc,) = struct.unpack(">I", start[29:33])
    if (length, kind) != (13, b"IHDR") or crc != zlib.crc32(start[12:29]) or not width * height:
        raise damaged(path, "its header is wrong")
    return Header("PNG", height, width, depth, _PNG_COLOURS.get(colour, "unknown"), colour in (4, 6))


def _pil_header(name: str, file: BinaryIO, path: Path) -> Header:
    with pil_image(name, file, path) as image:
        (width, height), mode = image.size, image.mode
    depth, colour = _PIL_MODES.get(mode.rstrip("A") if mode.endswith("A") else mode, (8, mode))
    return Header(name, height, width, depth, colour, mode in ("LA", "RGBA"))


def _webp_header(start: bytes, path: Path) -> Header:
    if len(start) < 30:
        raise truncated(path)
    kind, flags = start[12:16], start[20]
    if kind == b"VP8X":
        if flags & 2:
            raise ImageError(f"{path}: is animated; give a still photograph")
        width, height = (1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
        alpha = bool(flags & 16)
    elif kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        width, height, alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1)
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        alpha = False
    else:
        raise damaged(path, "its header is wrong")
    return Header("WebP", height, width, 8, "RGB", alpha)


@contextmanager
def tiff_page(file: BinaryIO, path: Path) -> Iterator[tifffile.TiffPage]:
    """The picture of a TIFF file, whose errors become an ImageError."""
    import tifffile  # here, because it takes a while to load

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what is wrong is said by the error below
    try:
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            # Thumbnails do not count.
            pictures = sum(isinstance(p, tifffile.TiffPage) and not p.is_reduced for p in tiff.pages)
            if pictures > 1:
                raise ImageError(f"{path}: holds {pictures} pictures; save each as a file of its own")
            yield page
    except ImageError:
        raise
    except MemoryError:
        raise damaged(path, "out of memory") from None
    except Exception as error:  # of many kinds: tifffile decodes what a damaged file claims as far as it gets
        raise damaged(path, _reason(error)) from None


def _tiff_header(file: BinaryIO, path: Path) -> Header:
    with tiff_page(file, path) as page:
        size = file.seek(0, os.SEEK_END)
        if not page.dataoffsets or len(page.dataoffsets) != len(page.databytecounts) or not all(page.databytecounts):
            raise damaged(path, "its pixels are missing")
        if any(offset + count > size for offset, count in zip(page.dataoffsets, page.databytecounts)):
            raise truncated(path)
        sides = (page.imagelength, page.imagewidth, page.bitspersample, page.samplesperpixel)
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise damaged(path, "its header is wrong")
        area = page.imagelength * page.imagewidth
        if page.is_tiled and page.tilewidth * page.tilelength > max(4 * area, _LARGEST_TILE):
            raise damaged(path, f"tiles of {page.tilewidth}x{page.tilelength} pixels")
        colour = _tiff_colour(page)
        if page.bitspersample == 1 and int(page.photometric) not in (0, 1, 3):  # 1 is what a lost tag means
            raise damaged(path, "its header is incomplete")
        extra = [int(kind) for kind in page.extrasamples]
        if page.samplesperpixel != _CHANNELS.get(colour, page.samplesperpixel) + len(extra) or page.imagedepth != 1:
            raise damaged(path, f"{page.samplesperpixel} channels")
        if extra and extra not in ([0], [2]):
            colour += " with premultiplied alpha" if extra == [1] else f" with {len(extra)} extra channels"
        return Header("TIFF", page.imagelength, page.imagewidth, page.bitspersample, colour, extra in ([0], [2]))


def _tiff_colour(page: tifffile.TiffPage) -> str:
    """Name of the colour; and of what keeps it from being read, if something does."""
    colour = _TIFF_COLOURS.get(int(page.photometric), getattr(page.photometric, "name", str(page.photometric)))
    compression = int(page.compression)
    if colour == "YCbCr" and compression == 7 and page.planarconfig == 1:
        colour = "RGB"  # the decoder of JPEG converts it; other compressions hold YCbCr, often subsampled
    if compression not in _TIFF_COMPRESSIONS:
        colour += f" compressed by {getattr(page.compression, 'name', page.compression)}"
    elif compression != 7 and page.predictor not in ((1, 2) if page.bitspersample > 1 else (1,)):
        colour += f" with predictor {getattr(page.predictor, 'name', page.predictor)}"
    if compression != 7 and page.fillorder != 1:
        colour += " with its bits in reverse order"
    if page.sampleformat != 1:
        colour = {2: "signed", 3: "float"}.get(int(page.sampleformat), "unknown") + f" {colour}"
    return colour


def _decode_tiff(data: bytes, page: tifffile.TiffPage, header: Header) -> NDArray[Any]:
    """Decode strip after strip, or tile after tile. tifffile itself decodes only JPEG, because its decoder of LZW can
    end the process on damaged data."""
    if int(page.compression) == 7:
        pixels: NDArray[Any] = page.asarray(maxworkers=1)
        pixels = np.moveaxis(pixels, 0, -1) if page.planarconfig == 2 and pixels.ndim == 3 else pixels
        pixels = pixels.reshape(header.height, header.width, -1)
    else:
        pixels = _decode_strips(memoryview(data), page, header)
    if page.photometric == 0:  # white is zero; alpha is not inverted
        pixels[..., 0] = ~pixels[..., 0] if header.depth != 1 else 1 - pixels[..., 0]
    if header.colour == "palette":
        if page.colormap is None:
            raise ValueError("has no palette")
        colours = page.colormap >> 8 if page.colormap.max() > 255 else page.colormap  # some are stored with 8 bits
        return np.ascontiguousarray(np.moveaxis(colours.astype(np.uint8)[:, pixels[..., 0]], 0, -1))
    pixels = pixels * np.uint8(255) if header.depth == 1 else pixels
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _decode_strips(data: memoryview, page: tifffile.TiffPage, header: Header) -> NDArray[Any]:
    """(H, W, channels); of one bit, 0 and 1. Raises ValueError, zlib.error or one of PIL's errors for damaged data."""
    height, width, channels = header.height, header.width, page.samplesperpixel
    planes = channels if page.planarconfig == 2 else 1
    together = channels // planes  # channels of a pixel that are stored side by side
    if page.is_tiled:
        tall, wide = page.tilelength, page.tilewidth
    else:
        tall, wide = min(page.rowsperstrip, height), width
    down, across = -(-height // tall), -(-width // wide)
    places = list(zip(page.dataoffsets, page.databytecounts))
    if len(places) != planes * down * across or header.depth not in TIFF_DEPTHS:
        raise ValueError(f"{len(places)} strips or tiles")
    stored = np.dtype(np.uint8 if header.depth < 16 else np.uint16)
    result = np.empty((height, width, channels), stored)
    for number, (at, size) in enumerate(places):
        plane, rest = divmod(number, down * across)
        top, left = rest // across * tall, rest % across * wide
        rows = tall if page.is_tiled else min(tall, height - top)
        line = -(-wide * together * header.depth // 8)  # bytes of a row
        raw = _decompress(data[at : at + size], int(page.compression), rows, line)
        if header.depth == 1:
            piece = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(rows, line), axis=1)[:, : wide * together]
        else:
            piece = np.frombuffer(raw, stored.newbyteorder(page.parent.byteorder))
        piece = piece.reshape(rows, wide, together)
        if page.predictor == 2:
            piece = np.cumsum(piece, axis=1, dtype=stored)
        chosen = slice(plane, plane + 1) if planes > 1 else slice(None)
        result[top : top + rows, left : left + wide, chosen] = piece[: height - top, : width - left]
    return result


def _decompress(data: memoryview, compression: int, rows: int, line: int) -> bytes:
    """The bytes of a strip or tile: `rows` times `line`."""
    if compression == 1:
        raw = bytes(data[: rows * line])
    elif compression in (8, 32946):
        raw = zlib.decompressobj().decompress(data, rows * line)
    else:  # by libtiff, as an image of bytes
        entries = ((256, line), (257, rows), (258, 8), (259, compression), (262, 1), (273, 122), (277, 1), (278, rows))
        folder = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*entries, (279, len(data)))]
        alone = b"II*\0\x08\0\0\0" + struct.pack("<H", len(folder)) + b"".join(folder) + bytes(4) + bytes(data)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with TiffImagePlugin.TiffImageFile(io.BytesIO(alone)) as image:
            raw = image.tobytes()
    if len(raw) != rows * line:
        raise ValueError(f"{len(raw)} bytes of pixels instead of {rows * line}")
    return raw


def _decode_png(data: bytes, chunks: Chunks, header: Header, path: Path) -> NDArray[Any]:
    try:
        if header.mode in ("8-bit grey with alpha", "16-bit grey", "16-bit grey with alpha", "16-bit RGB"):
            return _decode_checked_png(b"".join(chunks.get(b"IDAT", ())), header, interlaced=data[28] == 1)
        pixels: NDArray[Any] = imagecodecs.spng_decode(data)
        return pixels
    except (RuntimeError, ValueError, MemoryError, zlib.error) as error:
        raise damaged(path, _reason(error)) from None


def _decode_checked_png(compressed: bytes, header: Header, *, interlaced: bool) -> NDArray[Any]:
    """Decode a PNG of a kind that spng does not. What its decoder is given has been checked: the right number of bytes,
    and filters that exist. Interlaced passes are decoded as images of their own.

    Raises:
        ValueError, zlib.error: damaged pixels.
    """
    channels = (1 if header.colour == "grey" else 3) + header.alpha
    pixel = channels * header.depth // 8
    passes = [(x, y, dx, dy) for x, y, dx, dy in (_ADAM7 if interlaced else ((0, 0, 1, 1),))]
    shapes = [(-(-(header.height - y) // dy), -(-(header.width - x) // dx)) for x, y, dx, dy in passes]
    sizes = [height * (1 + width * pixel) if height > 0 and width > 0 else 0 for height, width in shapes]
    raw = zlib.decompressobj().decompress(compressed, sum(sizes) + 1)
    if len(raw) != sum(sizes):
        raise ValueError(f"{len(raw)} bytes of pixels instead of {sum(sizes)}")
    result = np.empty((header.height, header.width, channels), np.uint16 if header.depth == 16 else np.uint8)
    colour = {1: 0, 2: 4, 3: 2}[channels]
    at = 0
    for (x, y, dx, dy), (height, width), size in zip(passes, shapes, sizes):
        if not size:
            continue
        rows = raw[at : at + size]
        at += size
        if max(rows[:: 1 + width * pixel]) > 4:
            raise ValueError("an unknown filter")
        start = struct.pack(">IIBBBBB", width, height, header.depth, colour, 0, 0, 0)
        alone = PNG_SIGNATURE + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
        result[y::dy, x::dx] = imagecodecs.png_decode(alone).reshape(height, width, channels)
    return result[..., 0] if channels == 1 else result
