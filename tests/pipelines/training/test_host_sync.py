"""A training step on a GPU never makes the host wait: no number is read back, no mask counted, no copy waited for.

Without a GPU the step is run on torch's meta device, where tensors have shapes and no values, so that whatever reads
one raises; copies from the host are found by the operators called. That covers all but the noise and NCCL; the last
test needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2sm.images import skip_range_checks
from pipelines.config import Config
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.training_steps import OBJECTIVES, batch, config, row, rows_are_tensors

ALL = OBJECTIVES | {"sadnet": {"model.name": "sadnet", "loss.features": "efficientnet_lite0.bn1"}}

OnMeta = Callable[[Config], tuple[TrainState, Any]]
CASES = [*((name, 1) for name in ALL), ("d2sm", 2)]


def settings(name: str, folder: Path, parts: int) -> Config:
    changes = {"train.accumulate": parts, "train.ema": 0.9, "train.clip": 1.0, "train.recompute": parts > 1}
    if name in OBJECTIVES:
        return config(name, folder, **changes)
    return config("l1", folder, **{"loss.weight": 1.0, "model.width": 96, "model.depth": 12}, **ALL[name], **changes)


class _NoCopies(TorchDispatchMode):
    """Fails where a number of the host goes to the device: by `tensor.to(device)`, or assigned, as in `x[i] = 0`."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[Tensor] = []  # tensors made of numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten.scalar_tensor.default:
            self.numbers += made
        if func in (torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default):
            assert not any(args[2] is number for number in self.numbers), "a number is assigned: use index_fill_"
        kinds = {tensor.device.type for tensor in given}
        assert not (kinds == {"cpu"} and any(tensor.is_meta for tensor in made)), f"{func} copies from the host"
        return result


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> OnMeta:
    """Makes the state of a run on the meta device, and the row that all its steps take."""
    meta = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for meta
    rows_are_tensors(monkeypatch)

    def made(config: Config) -> tuple[TrainState, Any]:
        state = TrainState(config, steps_per_epoch=10, device=meta)
        if state.objective.d2sm is not None:
            state.objective.d2sm._labels_checked = True  # the very first step looks at them, once a run
        if state.objective.cross_entropy is not None:
            state.objective.cross_entropy._labels_checked = True  # likewise
        skip_range_checks(state.objective)
        return state, {key: tensor.to(meta) for key, tensor in batch(0, torch.float32).items()}

    return made


@pytest.mark.parametrize("name, parts", CASES)
def test_a_step_reads_nothing(name: str, parts: int, tmp_path: Path, on_meta: OnMeta) -> None:
    """Eight steps: while the queues are empty, partly filled, and full."""
    state, tensors = on_meta(settings(name, tmp_path, parts))
    with _NoCopies():
        for step in range(8):
            numbers = train_step(state, tensors, step)
    assert {number.device.type for number in numbers.values()} == {"meta"}


def test_a_step_in_pieces_reads_nothing(tmp_path: Path, on_meta: OnMeta, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product as a GPU splits it where features are longer than those here."""
    split: list[int] = []

    def pieces(device: torch.device, count: int, length: int) -> int:
        assert length % 8 == 0
        split.append(length)
        return 8

    monkeypatch.setattr("d2sm.divergence.pieces", pieces)
    state, tensors = on_meta(settings("d2sm", tmp_path, 1))
    with _NoCopies():
        for step in range(8):
            numbers = train_step(state, tensors, step)
    assert split and {number.device.type for number in numbers.values()} == {"meta"}


def test_a_compiled_step_reads_nothing(tmp_path: Path, on_meta: OnMeta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled whole: a number read in the middle would break the graph, which is an error; and meta tensors have none.

    Inductor's own kernels read nothing back, so the graphs of torch's operators stand for them.
    """
    monkeypatch.setattr("pipelines.training.compiled.BACKEND", "aot_eager")
    state, tensors = on_meta(settings("d2sm", tmp_path, 1).replace({"train.compile": True}))
    for step in range(8):
        numbers = train_step(state, tensors, step)
    assert {number.device.type for number in numbers.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: copies and noise do not exist on meta")
@pytest.mark.parametrize(
    "name, parts, changes",
    [
        *((*case, {}) for case in CASES),
        ("d2sm", 1, {"train.compile": True}),
        ("d2sm", 1, {"train.cuda_graphs": True}),
    ],
)
def test_a_step_on_a_gpu_waits_for_nothing(name: str, parts: int, changes: dict[str, Any], tmp_path: Path) -> None:
    given = settings(name, tmp_path, parts).replace({"train.precision": "bf16", "train.use_gpu": True, **changes})
    state = TrainState(given, steps_per_epoch=10, device=torch.device("cuda"))
    warm = 7 if changes else 2  # the first allocates and looks at the range; full queues are compiled once more
    for step in range(warm):
        train_step(state, row(step), step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(warm, warm + 6):
            train_step(state, row(step), step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
