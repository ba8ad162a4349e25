"""What meta.json says of a checkpoint's files: their sizes, their SHA-256, and its own.

Checkpoints written before there were digests have sizes alone; nothing more is known of them, and they are accepted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.runs import names
from pipelines.runtime import files

META = "meta.json"
_SIZES, _DIGESTS, _OWN = "sizes", "sha256", "digest"


def sealed(meta: Mapping[str, Any], folder: Path, written: Iterable[str]) -> str:
    """The text of meta.json: what is given, and size and digest of the files that were written into the folder."""
    written = list(written)
    whole = {
        **meta,
        _SIZES: {name: (folder / name).stat().st_size for name in written},
        _DIGESTS: {name: files.sha256(folder / name) for name in written},
    }
    return json.dumps({**whole, _OWN: _own_digest(whole)}, indent=2)


def sizes(meta: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of a checkpoint's files by name, of which none leads elsewhere.

    Raises:
        ValueError: meta.json does not name them.
    """
    found = meta.get(_SIZES)
    if not isinstance(found, dict) or not all(names.is_plain(name) and type(found[name]) is int for name in found):
        raise ValueError(f"{META} does not name the files")
    return found


def fault(folder: Path, meta: Mapping[str, Any], only: Collection[str] | None = None) -> str | None:
    """The name of the first file of a checkpoint that is not as it was written, and how it differs; None: all are.

    Args:
        meta: the content of meta.json.
        only: check these files, if meta.json names them; None: all, of which none may be missing.

    Raises:
        OSError: a file that is there cannot be read.
    """
    try:
        expected = sizes(meta)
    except ValueError as error:
        return None if only is not None else str(error)
    if meta.get(_OWN, _own_digest(meta)) != _own_digest(meta):
        return f"{META} differs from what was written (sha256)"
    digests: Any = meta.get(_DIGESTS)
    digests = digests if isinstance(digests, dict) else {}
    checked = [name for name in expected if only is None or name in only]
    for name in checked:
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != expected[name]:
            return f"{name} has {size} bytes instead of {expected[name]}"
    for name in checked:
        if name in digests and files.sha256(folder / name) != digests[name]:
            return f"{name} differs from what was written (sha256)"
    return None


def _own_digest(meta: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in meta.items() if key != _OWN}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
