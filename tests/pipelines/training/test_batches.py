"""A rank's batches: on a GPU they are made on a stream of their own, for which the step's stream waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.training.batches import Batch, Loader
from tests.helpers.training_steps import batch, config, row, rows_are_tensors

CUDA = torch.device("cuda")


class Stream:
    """Stands for a CUDA stream, which notes for what it waits."""

    def __init__(self, name: str, events: list[Any]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: Stream) -> None:
        self.events.append(("wait", self.name, other.name))


@pytest.mark.parametrize("labelled", [False, True])
def test_the_step_waits_for_the_copies_before_it_takes_their_memory(
    labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: the streams are torch's alone, and tensors of the CPU stand for those of the device."""
    events: list[Any] = []
    side, step, tensors = Stream("side", events), Stream("step", events), batch(0, torch.float32)

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        events.append(("enter", stream.name))
        yield
        events.append(("leave", stream.name))

    def load(given: dict[str, Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        events.append("load")
        return given["clean"], given["noisy"], given["sigma"]

    rows_are_tensors(monkeypatch)
    monkeypatch.setattr("pipelines.data.stream.to_tensors", load)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: side)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: step)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, by: events.append((id(tensor), by.name)))
    if not labelled:
        del tensors["labels"]
    found = Loader(config("l1", tmp_path), CUDA)(tensors)  # type: ignore[arg-type]
    kept = [tensor for tensor in found if tensor is not None]
    assert len(kept) == 3 + labelled
    assert events == [
        ("enter", "side"), "load", ("leave", "side"), ("wait", "step", "side"),
        *((id(tensor), "step") for tensor in kept),
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_stream_changes_no_number(tmp_path: Path) -> None:
    """Noise, copies and labels, bit for bit, also of the batch after, which is made while the first is in use."""
    loader = Loader(config("all", tmp_path), CUDA)
    found = [loader(row(step)) for step in range(3)]
    wanted = [loader._load(row(step)) for step in range(3)]
    for one, other in zip(found, wanted, strict=True):
        for name, tensor, same in zip(Batch._fields, one, other, strict=True):
            assert tensor is not None and same is not None and torch.equal(tensor, same), name
