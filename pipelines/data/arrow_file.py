"""What an Arrow IPC file declares, read from its own bytes before Arrow opens it.

Opening a file is not safe by itself: for every field that is marked as an extension type, Arrow calls the Python class
that is registered for it. Ray Data registers some when it is imported, and they unpickle: its Python objects when a
value is read, its tensors, in some versions, as soon as the file is opened. A compressed record may take a thousand
times its size in memory. Neither is in a file of ours.

The layout is that of Arrow's columnar format: "ARROW1", messages, the footer, its length, "ARROW1". Footer and messages
are flatbuffers: tables whose fields are found through a table of offsets.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_MAGIC = b"ARROW1"
_MARKER = b"\xff\xff\xff\xff"  # at the beginning of a message
_EXTENSION = (
    b"ARROW:extension"  # the key, within a field's metadata, of the type's name; strings are stored as they are
)
_DICTIONARIES, _RECORDS = 2, 3  # fields of the footer
_HEADER = 2  # field of a message
_COMPRESSION = 3  # field of a record batch
_MESSAGE = 2**16  # bytes of a message's description that are looked at; ours take less than a thousand
_BLOCK = 24  # bytes of an entry of the footer: where a message is


def unsafe_content(path: str | Path) -> str:
    """Why a file must not be given to Arrow: it is not whole, or of a kind that we never write; "" if it may be."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _unsafe(content)
    except (ValueError, struct.error, IndexError):  # an empty file, or an offset that leads out of it
        return "not a whole Arrow file"


def _unsafe(content: mmap.mmap) -> str:
    end = len(content) - len(_MAGIC) - 4
    if content[: len(_MAGIC)] != _MAGIC or content[-len(_MAGIC) :] != _MAGIC:
        return "not a whole Arrow file"
    (length,) = struct.unpack_from("<i", content, end)
    if not 0 < length <= end:
        return "not a whole Arrow file"
    footer = content[end - length : end]
    if _EXTENSION in footer:
        return "has a column of an extension type, which may run code"
    root = _follow(footer, 0)
    if _blocks(footer, root, _DICTIONARIES):
        return "has a dictionary"
    for start in _blocks(footer, root, _RECORDS):
        if content[start : start + 4] != _MARKER:
            return "has records of an older format"
        message = content[start + 8 : start + 8 + _MESSAGE]  # after the marker and the length
        record = _field(message, _follow(message, 0), _HEADER)
        if record is None or _field(message, _follow(message, record), _COMPRESSION) is not None:
            return "has compressed records"
    return ""


def _blocks(footer: bytes, root: int, number: int) -> list[int]:
    """Where the messages begin that a list of the footer names."""
    position = _field(footer, root, number)
    if position is None:
        return []
    entries = _follow(footer, position)
    (count,) = struct.unpack_from("<I", footer, entries)
    if count * _BLOCK > len(footer):
        raise ValueError("the footer names more messages than it has room for")
    starts = [int(struct.unpack_from("<q", footer, entries + 4 + n * _BLOCK)[0]) for n in range(count)]
    if any(start < 0 for start in starts):
        raise ValueError("a message before the file")
    return starts


def _follow(buffer: bytes, position: int) -> int:
    """The position to which the offset at a position leads."""
    return position + int(struct.unpack_from("<I", buffer, position)[0])


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """The position of a table's field; None where it is left out."""
    offsets = table - int(struct.unpack_from("<i", buffer, table)[0])
    if offsets < 0:
        raise ValueError("a table before the buffer")
    (size,) = struct.unpack_from("<H", buffer, offsets)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", buffer, offsets + 4 + 2 * number)
    return table + offset if offset else None
