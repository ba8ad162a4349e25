"""A photograph with all that its file holds beside the colours: transparency, colour profile, density and EXIF.

`read_photo` takes grey and RGB photographs of 8 or 16 bits, with or without alpha, palettes, and CMYK with a profile,
from every format of `formats`; pixels come upright. `write_photo` gives them back in the format that the target's
suffix names. Data for training is read more strictly, by `images`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from pipelines.data import formats
from pipelines.data.formats import Chunks, Header, ImageError
from pipelines.runtime import files

JPEG_QUALITY = 95
"""Of JPEG files, written without subsampling of the colours; 4:2:0 would blur the colours of what was just restored."""
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
"""The suffixes of files that `write_photo` writes, and their formats."""

_ORIENTATION = 0x0112
_EXIF_MAGIC = b"Exif\0\0"
_KEPT_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")  # what a PNG's numbers mean as colours, apart from a profile
_TIFF_TEXTS = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, date, artist, copyright
_TIFF_START = b"II*\0\0\0\0\0"
_EXIF_FOLDERS = (0x8769, 0x8825)  # Exif and GPS
_EXIF_SIDES = (0xA002, 0xA003)  # width and height
_MOST_PROFILE = 2**24  # bytes of a profile that a small chunk may decompress to
_STRIP = 2**20  # bytes of a strip of a TIFF file, before compression
_CENTIMETRE, _INCH, _METRE = 1 / 2.54, 1.0, 1 / 0.0254  # in inches


class About(NamedTuple):
    """What a file says about its pixels.

    Attributes:
        profile: ICC profile.
        exif: EXIF, as a TIFF structure; its orientation, once applied, says upright.
        density: pixels per inch, horizontal and vertical.
        colours: chunks of a PNG that say what its numbers mean, by kind.
    """

    profile: bytes | None = None
    exif: bytes | None = None
    density: tuple[float, float] | None = None
    colours: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    Attributes:
        pixels: (H, W, 3) RGB or (H, W) grey; uint8 or uint16.
        alpha: (H, W) opacity of the same type; None: opaque.
        about: profile, EXIF and density.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    about: About = field(default_factory=About)


def read_photo(path: Path) -> Photo:
    """Read a photograph.

    Raises:
        ImageError: the file is missing, no image, damaged, truncated or too large; or it is animated, several pictures,
            floating point, CMYK without a profile, or has more channels than colours and alpha.
    """
    with formats.open_file(path) as file:
        header = formats.read_header(file, path)
        _check(header, path)
        file.seek(0)
        data = formats.read_bytes(file, header, path)
    chunks = formats.read_chunks(data, path) if header.format == "PNG" else {}
    if b"acTL" in chunks:
        raise ImageError(f"{path}: is animated; give a still photograph")
    pixels = formats.decode(data, header, path, chunks=chunks)
    orientation, about = _about(data, header, chunks, path)
    alpha = _transparency(pixels, chunks, header, path)
    if alpha is None and pixels.ndim == 3 and pixels.shape[2] in (2, 4) and header.colour != "CMYK":
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if header.colour == "CMYK":
        pixels, about = _from_cmyk(pixels, about, path)
    if orientation in (5, 6, 7, 8) and about.density:
        about = about._replace(density=about.density[::-1])
    upright = None if alpha is None else np.ascontiguousarray(_upright(alpha, orientation))
    return Photo(np.ascontiguousarray(_upright(pixels, orientation)), upright, about)


def pixels_of(path: Path) -> int:
    """The number of pixels that a file's header states. Raises ImageError."""
    with formats.open_file(path) as file:
        header = formats.read_header(file, path)
    return header.height * header.width


def check_suffix(path: Path) -> None:
    """Check that a target's suffix names a format that is written.

    Raises:
        ImageError: it does not.
    """
    if path.suffix.lower() not in SUFFIXES:
        what = f"the suffix {path.suffix} is" if path.suffix else "has no suffix, which would be"
        raise ImageError(
            f"{path}: {what} not that of a format that is written ({' '.join(SUFFIXES)}); name it {path.stem}.png, or "
            f"{path.name}/ for a folder"
        )


def check_fits(photo: Photo, path: Path) -> None:
    """Check that the format of a target can hold a photograph.

    Raises:
        ImageError: it has 16 bits or transparency, and the format has not; or too many pixels for WebP.
    """
    name, deep, (height, width) = SUFFIXES[path.suffix.lower()], photo.pixels.dtype != np.uint8, photo.pixels.shape[:2]
    what = "16 bits" if deep and name in ("JPEG", "WebP") else ""
    if photo.alpha is not None and name == "JPEG":
        what = f"{what} and transparency" if what else "transparency"
    most = {"JPEG": 65535, "WebP": 16383}.get(name, 2**31 - 1)
    if max(height, width) > most:
        what = f"{max(height, width)} pixels in a row or column"
    if what:
        raise ImageError(f"{path}: {name} cannot hold {what}; write {path.stem}.png")


def write_photo(path: Path, photo: Photo) -> None:
    """Write a photograph whole or not at all, in the format that the suffix names; makes its folder.

    Raises:
        ImageError: the format cannot hold it, or has no such suffix.
        OSError: the file cannot be written; a former one stays as it was.
    """
    check_suffix(path)
    check_fits(photo, path)
    name = SUFFIXES[path.suffix.lower()]
    try:
        data = _png(photo) if name == "PNG" else _tiff(photo) if name == "TIFF" else _pil(photo, name)
    except (ValueError, RuntimeError, MemoryError, struct.error) as error:
        raise ImageError(f"{path}: cannot be written as {name} ({error}); write {path.stem}.png") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, shared=True) as temporary:
        temporary.write_bytes(data)


def _check(header: Header, path: Path) -> None:
    """Check that a photograph is of a kind that is taken."""
    depths = formats.TIFF_DEPTHS if header.format == "TIFF" else (1, 2, 4, 8, 16)
    grey_or_rgb = header.colour in ("grey", "RGB") and header.depth in depths
    palette = header.colour == "palette" and header.depth in depths and header.depth <= 8
    if not (grey_or_rgb or palette or header.mode == "8-bit CMYK"):
        raise ImageError(
            f"{path}: is {header.mode}, not grey or RGB of 8 or 16 bits; convert it: `convert in{path.suffix} out.png`"
        )


def _transparency(pixels: NDArray[Any], chunks: Chunks, header: Header, path: Path) -> NDArray[Any] | None:
    """The alpha of a PNG's chunk tRNS: it names a transparent colour, or the opacity of each colour of a palette."""
    if b"tRNS" not in chunks or header.alpha:
        return None
    stated, most = bytes(chunks[b"tRNS"][0]), np.iinfo(pixels.dtype).max
    if header.colour == "palette":
        opacity = np.full(256, 255, np.uint8)
        opacity[: len(stated)] = np.frombuffer(stated[:256], np.uint8)
        return opacity[_palette_indices(chunks, header, path)]
    key = np.frombuffer(stated, ">u2").astype(np.uint32)
    if len(key) != (1 if header.colour == "grey" else 3):
        raise formats.damaged(path, "its transparent colour is wrong")
    key = key * (255 // (2**header.depth - 1)) if header.depth < 8 else key
    same = pixels == key.astype(pixels.dtype)
    return np.where(same.all(-1) if pixels.ndim == 3 else same, 0, most).astype(pixels.dtype)


def _palette_indices(chunks: Chunks, header: Header, path: Path) -> NDArray[np.uint8]:
    """The pixels of a PNG with a palette as stored: decoded as if they were grey, which is scaled to 8 bits."""
    start = bytearray(chunks[b"IHDR"][0])
    start[9] = 0  # grey
    kept = ((b"IHDR", bytes(start)), (b"IDAT", b"".join(chunks.get(b"IDAT", ()))), (b"IEND", b""))
    data = formats.PNG_SIGNATURE + b"".join(formats.chunk(*one) for one in kept)
    grey: NDArray[np.uint8] = formats.decode(data, header._replace(colour="grey"), path, chunks=chunks)
    return grey // np.uint8(255 // (2**header.depth - 1))


def _from_cmyk(pixels: NDArray[Any], about: About, path: Path) -> tuple[NDArray[Any], About]:
    """CMYK as sRGB, by its own profile. Without one nobody knows which inks the numbers mean."""
    remedy = "convert it with its printer's profile: `convert in.jpg -profile inks.icc -profile sRGB.icc out.png`"
    if about.profile is None:
        raise ImageError(f"{path}: is CMYK without a colour profile; {remedy}")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(about.profile))
        image = ImageCms.profileToProfile(
            Image.fromarray(pixels, "CMYK"),
            inks,
            srgb,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ImageError(f"{path}: is CMYK with a colour profile that cannot be used ({error}); {remedy}") from None
    assert image is not None
    return np.array(image), about._replace(profile=srgb.tobytes(), colours=())


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels as they are to be shown, from an orientation of EXIF, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _about(data: bytes, header: Header, chunks: Chunks, path: Path) -> tuple[int, About]:
    """The orientation of EXIF (1: upright), and what else a file says about its pixels."""
    if header.format == "PNG":
        return _about_png(chunks)
    if header.format == "TIFF":
        return _about_tiff(data, path)
    with formats.pil_image(header.format, io.BytesIO(data), path) as image:
        info = image.info
    orientation, exif = _oriented(info.get("exif"))
    density = _exif_density(exif)
    if (unit := info.get("jfif_unit")) in (1, 2):
        per_inch = _INCH if unit == 1 else _CENTIMETRE
        density = (info["jfif_density"][0] / per_inch, info["jfif_density"][1] / per_inch)
    return orientation, About(info.get("icc_profile"), exif, density)


def _about_png(chunks: Chunks) -> tuple[int, About]:
    orientation, exif = _oriented(bytes(chunks[b"eXIf"][0]) if b"eXIf" in chunks else None)
    density, profile = _exif_density(exif), None
    if b"iCCP" in chunks:
        profile = _profile(bytes(chunks[b"iCCP"][0]))
    if b"pHYs" in chunks and len(chunks[b"pHYs"][0]) == 9 and chunks[b"pHYs"][0][8] == 1:
        across, down = struct.unpack(">II", chunks[b"pHYs"][0][:8])
        density = (across / _METRE, down / _METRE)
    colours = tuple((kind, bytes(chunks[kind][0])) for kind in _KEPT_CHUNKS if kind in chunks)
    return orientation, About(profile, exif, density, colours)


def _profile(chunk: bytes) -> bytes | None:
    """The profile in a PNG's chunk iCCP: a name, a zero, the method, and the profile, compressed."""
    try:
        return zlib.decompressobj().decompress(chunk.partition(b"\0")[2][1:], _MOST_PROFILE) or None
    except zlib.error:  # the profile alone is damaged, and viewers leave it out likewise
        return None


def _about_tiff(data: bytes, path: Path) -> tuple[int, About]:
    with formats.tiff_page(io.BytesIO(data), path) as page:
        tags = {tag: page.tags[tag].value for tag in (_ORIENTATION, 282, 283, 296) if tag in page.tags}
        profile = page.iccprofile
    orientation = tags.get(_ORIENTATION)
    density = _density(tags.get(282), tags.get(283), tags.get(296, 2))
    about = About(bytes(profile) if profile else None, _tiff_exif(data), density)
    return (orientation, about) if isinstance(orientation, int) and 1 <= orientation <= 8 else (1, about)


def _tiff_exif(data: bytes) -> bytes | None:
    """The texts, EXIF and GPS of a TIFF file, without what concerns how its pixels are stored."""
    found, kept = _exif_tags(data), Image.Exif()
    for tag, value in found.items():
        if isinstance(value, dict):
            kept.get_ifd(tag).update(value)
        else:
            kept[tag] = value
    return kept.tobytes().removeprefix(_EXIF_MAGIC) if found else None


def _exif_tags(data: bytes) -> dict[int, Any]:
    """The texts in a TIFF structure by tag, and its folders EXIF and GPS as dicts; {} if it is damaged."""
    stored = Image.Exif()
    try:
        stored.load(data)
        texts = {tag: stored[tag] for tag in _TIFF_TEXTS if tag in stored}
        folders = {folder: stored.get_ifd(folder) for folder in _EXIF_FOLDERS}
    except Exception:  # PIL raises many kinds on damaged tags; the pixels are whole
        return {}
    writable = {folder: _writable(tags, folder) for folder, tags in folders.items()}
    return _writable(texts) | {folder: tags for folder, tags in writable.items() if tags}


def _writable(tags: Mapping[int, Any], folder: int | None = None) -> dict[int, Any]:
    """The tags of a folder that PIL can write. It writes a tag as the type it should have; some software writes others,
    such as a latitude as text, and PIL then raises errors of many kinds."""
    found = {}
    for tag, value in tags.items():
        alone = TiffImagePlugin.ImageFileDirectory_v2(_TIFF_START, group=folder)
        with contextlib.suppress(Exception):
            alone[tag] = value
            alone.tobytes(8)
            found[tag] = value
    return found


def _density(across: object, down: object, unit: object) -> tuple[float, float] | None:
    """Pixels per inch from the values of the tags 282, 283 and 296 of TIFF and EXIF; None where they say nothing."""

    def number(value: Any) -> float:
        return float(value[0] / value[1]) if isinstance(value, tuple) else float(value)

    try:
        per_inch = {2: _INCH, 3: _CENTIMETRE}[int(unit)]  # type: ignore[call-overload]
        density = number(across) / per_inch, number(down) / per_inch
    except (LookupError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    return density if all(0 < side < 1e6 for side in density) else None


def _exif_density(exif: bytes | None) -> tuple[float, float] | None:
    if exif is None:
        return None
    try:
        tags = Image.Exif()
        tags.load(exif)
        return _density(tags.get(282), tags.get(283), tags.get(296, 2))
    except Exception:  # as in `_exif_tags`
        return None


def _oriented(exif: bytes | None) -> tuple[int, bytes | None]:
    """The orientation, and the EXIF of the upright image: it says so, its sides agree, and it has no thumbnail, which
    would be that of the former pixels. Changed in place, because notes of cameras hold absolute positions."""
    if exif is None:
        return 1, None
    raw = bytearray(exif.removeprefix(_EXIF_MAGIC))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(raw[:4]))
    if order is None or len(raw) < 8:
        return 1, None
    (first,) = struct.unpack_from(f"{order}I", raw, 4)
    tags = _entries(raw, order, first)
    orientation = 1
    if (at := tags.get(_ORIENTATION)) is not None:
        (kind,) = struct.unpack_from(f"{order}H", raw, at + 2)
        if stored := {3: f"{order}H", 4: f"{order}I"}.get(kind):  # other types are no orientation to others either
            (orientation,) = struct.unpack_from(stored, raw, at + 8)
            struct.pack_into(stored, raw, at + 8, 1)
    if (at := tags.get(_EXIF_FOLDERS[0])) is not None and orientation in (5, 6, 7, 8):
        inner = _entries(raw, order, struct.unpack_from(f"{order}I", raw, at + 8)[0])
        sides = [inner[tag] for tag in _EXIF_SIDES if tag in inner]
        if len(sides) == 2:
            one, other = (bytes(raw[at + 2 : at + 12]) for at in sides)  # type, number and value
            raw[sides[0] + 2 : sides[0] + 12], raw[sides[1] + 2 : sides[1] + 12] = other, one
    if tags:
        after = max(tags.values()) + 12
        raw[after : after + 4] = bytes(len(raw) - after)[:4]  # there is no next folder, that of the thumbnail
    return orientation if 1 <= orientation <= 8 else 1, bytes(raw)


def _entries(raw: bytearray, order: str, at: int) -> dict[int, int]:
    """Where the entry of each tag begins in a folder of EXIF; {} if the folder is not whole."""
    if at + 2 > len(raw):
        return {}
    (count,) = struct.unpack_from(f"{order}H", raw, at)
    if at + 2 + 12 * count > len(raw):
        return {}
    places = [at + 2 + 12 * number for number in range(count)]
    return {struct.unpack_from(f"{order}H", raw, place)[0]: place for place in places}


def _channels(photo: Photo) -> NDArray[Any]:
    """Colours and alpha as one array."""
    if photo.alpha is None:
        return photo.pixels
    return np.dstack([photo.pixels, photo.alpha])


def _png(photo: Photo) -> bytes:
    about, array = photo.about, np.ascontiguousarray(_channels(photo))
    deep_or_grey_alpha = array.dtype == np.uint16 or array.shape[2:] == (2,)
    data = bytes((imagecodecs.png_encode if deep_or_grey_alpha else imagecodecs.spng_encode)(array, level=3))
    extra = []
    if about.profile is not None:
        extra.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(about.profile)))
    extra += [(kind, stated) for kind, stated in about.colours if not (about.profile and kind == b"sRGB")]
    if about.density:
        extra.append((b"pHYs", struct.pack(">IIB", *(round(side * _METRE) for side in about.density), 1)))
    if about.exif:
        extra.append((b"eXIf", about.exif))
    head = len(formats.PNG_SIGNATURE) + 25  # with the chunk IHDR, which comes first
    return data[:head] + b"".join(formats.chunk(kind, stated) for kind, stated in extra) + data[head:]


def _pil(photo: Photo, name: str) -> bytes:
    image = Image.fromarray(_channels(photo))
    about, buffer = photo.about, io.BytesIO()
    options: dict[str, Any] = {"icc_profile": about.profile, "exif": _EXIF_MAGIC + about.exif if about.exif else b""}
    if name == "JPEG":
        options |= {"quality": JPEG_QUALITY, "subsampling": 0}
        if about.density:
            options["dpi"] = about.density
    else:
        image = image.convert("RGB" if photo.alpha is None else "RGBA")  # WebP has no grey
        options |= {"lossless": True, "exact": True}
        if about.profile and about.profile[16:20] == b"GRAY":
            options["icc_profile"] = None  # a profile of grey says nothing about RGB, and readers refuse it
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _tiff(photo: Photo) -> bytes:
    """A TIFF file of strips, compressed by deflate with differences along the rows.

    Written here because PIL writes no colours of 16 bits, and tifffile no EXIF.
    """
    array, about = _channels(photo), photo.about
    height, width, channels = array.shape[0], array.shape[1], array.shape[2] if array.ndim == 3 else 1
    rows = max(1, _STRIP // (width * channels * array.itemsize))
    strips = []
    for top in range(0, height, rows):
        strip = array[top : top + rows].astype(array.dtype.newbyteorder("<"))
        strip[:, 1:] -= array[top : top + rows, :-1]
        strips.append(zlib.compress(strip.tobytes(), 3))
    tags = TiffImagePlugin.ImageFileDirectory_v2(_TIFF_START)
    tags[256], tags[257], tags[258] = width, height, (array.itemsize * 8,) * channels
    tags[259], tags[262], tags[277], tags[278], tags[317] = 8, 2 if channels > 2 else 1, channels, rows, 2
    if photo.alpha is not None:
        tags[338] = 2  # opacity that the colours have not been multiplied with
    if about.density:
        tags[282], tags[283], tags[296] = *about.density, 2
    if about.profile:
        tags[34675] = about.profile
    for tag, value in _exif_tags(about.exif).items() if about.exif else ():
        tags[tag] = value
    sizes = [len(strip) for strip in strips]
    tags[273], tags[279] = tuple(accumulate(sizes[:-1], initial=0)), tuple(sizes)  # PIL adds where the strips begin
    return b"II*\0" + struct.pack("<I", 8) + tags.tobytes(8) + b"".join(strips)
