"""train.compile: the same steps as eager, compiled once; where it cannot be had, one line and no other way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pipelines.config import ConfigError
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.training_steps import CPU, config, row

STEPS = 8  # the queues of 24 samples are full after five


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def built(name: str, folder: Path, **changes: Any) -> TrainState:
    return TrainState(config(name, folder, **{f"train.{key}": value for key, value in changes.items()}), 10, device=CPU)


def compare(plain: TrainState, compiled: TrainState, steps: int = STEPS) -> list[int]:
    """Run both; gives the number of graphs compiled after each step."""
    assert compiled.state_dict()["model"].keys() == plain.state_dict()["model"].keys()
    graphs = []
    for step in range(steps):
        wanted, seen = train_step(plain, row(step), step), train_step(compiled, row(step), step)
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    torch.testing.assert_close(compiled.network.state_dict(), plain.network.state_dict(), rtol=1e-4, atol=1e-6)
    return graphs


@pytest.mark.parametrize("name", ["d2sm", "ratio", pytest.param("all", marks=pytest.mark.long)])
def test_steps_are_equal_and_compiled_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As graphs of torch's own operators, so that no compiler is needed."""
    monkeypatch.setattr("pipelines.training.compiled.BACKEND", "aot_eager")
    graphs = compare(built(name, tmp_path), built(name, tmp_path, compile=True))
    assert 0 < graphs[0] == graphs[3] < graphs[5] == graphs[-1], "full queues add graphs once; no step compiles again"


def test_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of two, two and one crops: two shapes."""
    monkeypatch.setattr("pipelines.training.compiled.BACKEND", "aot_eager")
    graphs = compare(built("d2sm", tmp_path, accumulate=3), built("d2sm", tmp_path, accumulate=3, compile=True), 7)
    assert graphs[5] == graphs[-1]


@pytest.mark.long
def test_compiled_by_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor  # some seconds

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "none"))}):
        with pytest.raises(ConfigError, match=r"train.compile=true: .*compiler.*set train.compile=false") as error:
            train_step(built("d2sm", tmp_path, compile=True), row(0), 0)
        assert "\n" not in str(error.value)
    torch._dynamo.reset()
    counters.clear()
    graphs = compare(built("d2sm", tmp_path), built("d2sm", tmp_path, compile=True))
    assert graphs[5] == graphs[-1]
