"""Whether two trainings ended with the same tensors and logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from pipelines.runs import checkpoint

if TYPE_CHECKING:
    from pipelines.train import Trained


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def same_run(a: Trained, b: Trained) -> None:
    assert a.step == b.step == 6
    assert equal(load_file(a.checkpoint / checkpoint.MODEL), load_file(b.checkpoint / checkpoint.MODEL))
    first, second = checkpoint.load_state(a.checkpoint), checkpoint.load_state(b.checkpoint)
    differ = [part for part in first if not equal(first[part], second[part])]
    assert not differ
