"""Files of weights, read as if a stranger had written them: tensors and plain values; nothing in them runs."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class WeightsError(ValueError):
    """A file of weights that cannot be read. One line, without the file's name."""


def read_plain(path: str | Path) -> Any:
    """What `torch.save` wrote, if it is made of tensors and plain values.

    Raises:
        WeightsError: the file is missing or damaged, or holds anything else.
    """
    check_file(Path(path))
    try:
        _check_size(Path(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # of a damaged file, torch's unpickler raises whatever comes of it
        raise WeightsError(f"no tensors and plain values, or damaged: {reason_of(error)}") from None


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file by name, and its metadata.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    from safetensors import safe_open

    check_file(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # a type of numbers that torch lacks is a KeyError, for example
        raise WeightsError(f"no safetensors, or damaged: {reason_of(error)}") from None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, if its name ends so, else what `torch.save` wrote.

    Raises:
        WeightsError: the file cannot be read, or is no plain state dict.
    """
    state = read_safetensors(path)[0] if Path(path).suffix == ".safetensors" else read_plain(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError("not a plain state dict of tensors")
    if not all(isinstance(name, str) for name in state):
        raise WeightsError("not a plain state dict: a name is no text")
    return state


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits over the names and values of weights, whatever file or registry they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_file(path: Path) -> None:
    """Make sure that this is a regular file that can be reached; a pipe would be waited for.

    Raises:
        WeightsError: it is not.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise WeightsError(getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(mode):
        raise WeightsError("is a folder" if stat.S_ISDIR(mode) else "not a regular file")


def _check_size(path: Path) -> None:
    """torch.save compresses nothing; what is compressed, or stored once and listed often, may not fit into memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError("holds compressed entries, which torch.save does not write")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError("lists more bytes than it has")


def reason_of(error: Exception) -> str:
    """The first line of a message, without what it says to programmers."""
    first = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
