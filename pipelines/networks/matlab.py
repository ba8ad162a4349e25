"""The authors' FFDNet weights: a MatConvNet network in a MATLAB 7.3 file, which is HDF5. Read as a stranger's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2sm.weights import WeightsError, check_file

_LAYERS = "net/layers"
_MOST_LAYERS = 1000
_MOST_NUMBERS = 2**26  # in one array: compressed data may claim any size
_EXPECTED = {"conv": {"pad": 1.0, "stride": 1.0, "dilate": 1.0}, "relu": {"leak": 0.0}}  # what our network computes


def read_matlab(path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """The convolutions of an FFDNet, first to last.

    Returns:
        For each the kernel (out, in, 3, 3), its last two dimensions down and right, and the bias (out,).

    Raises:
        WeightsError: no MATLAB 7.3 file, or no such network in it.
    """
    import h5py

    check_file(Path(path))
    try:
        with h5py.File(path, "r") as file:
            return _convolutions(file)
    except WeightsError:
        raise
    except Exception as error:  # of a damaged file, HDF5 raises whatever comes of it
        first = (str(error).strip().splitlines() or [""])[0][:160]
        raise WeightsError(f"no MATLAB 7.3 file (HDF5) of a network: {type(error).__name__}: {first}") from None


def _convolutions(file: Any) -> list[tuple[Tensor, Tensor]]:
    import h5py

    if not isinstance(file.get(_LAYERS), h5py.Dataset):
        raise WeightsError(f"holds no {_LAYERS}, the cell array of MatConvNet")
    references = _numbers(file[_LAYERS], most=_MOST_LAYERS).ravel()
    layers = [file[reference] for reference in references]
    kinds = ["".join(map(chr, _numbers(layer["type"], most=100).ravel())) for layer in layers]
    inner = kinds[2:-1]
    if kinds[:2] != ["SubP", "concat"] or kinds[-1] != "SubP" or inner != (["conv", "relu"] * len(kinds))[: len(inner)]:
        raise WeightsError(f"its layers are no FFDNet's: {', '.join(dict.fromkeys(kinds))}"[:200])
    found = []
    for kind, layer in zip(kinds, layers, strict=True):
        for key, expected in _EXPECTED.get(kind, {}).items():
            if key in layer and not np.all((value := _numbers(layer[key], most=100)) == expected):
                raise WeightsError(f"a layer {kind} has {key}={value.ravel().tolist()}, FFDNet's have {expected:g}")
        if kind == "conv":
            kernel, bias = (_numbers(file[one]) for one in _numbers(layer["weights"], most=2).ravel())
            # HDF5 lists MATLAB's dimensions, (down, right, in, out), from the last to the first.
            found.append((_tensor(kernel).transpose(-1, -2).contiguous(), _tensor(bias).flatten()))
    return found


def _numbers(dataset: Any, most: int = _MOST_NUMBERS) -> np.ndarray:
    """An array of the file. Raises WeightsError: it is large, or lies in another file."""
    if dataset.size is None or dataset.size > most:
        raise WeightsError(f"an array of {dataset.size} numbers; FFDNet's weights have none so large")
    if dataset.external is not None or dataset.is_virtual:
        raise WeightsError("an array lies in another file")
    return np.asarray(dataset[()])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
