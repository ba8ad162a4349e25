"""train.cuda_graphs: which passes are captured, for which calls; on a GPU, the steps without graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.config import Config, ConfigError
from pipelines.training.graphs import Graphed
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.helpers.training_steps import config, row


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """The samples that torch was given to capture; without a GPU the pass itself stands for its graph."""
    seen: list[tuple[Tensor, ...]] = []

    def capture(one_pass: nn.Module, samples: tuple[Tensor, ...]) -> nn.Module:
        assert not (torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled())
        one_pass(*samples)  # the warm-up
        seen.append(samples)
        return one_pass

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return seen


def test_one_capture_for_each_kind_of_call(captures: list[tuple[Tensor, ...]]) -> None:
    passes = Graphed(lambda images: images * 2, None)
    clean = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    restored = clean.clone().requires_grad_()
    for _ in range(3):
        with torch.no_grad():
            first, second = passes(clean), passes(clean + 1)
        torch.testing.assert_close(second - first, torch.full_like(first, 2.0))
        (gradient,) = torch.autograd.grad(passes(restored).sum(), restored)
        assert (gradient == 2).all()
    assert [sample.requires_grad for (sample,) in captures] == [False, True]
    assert all(sample.is_contiguous(memory_format=torch.channels_last) for (sample,) in captures)
    passes(restored[:1])
    assert len(captures) == 3, "a smaller batch is another graph"


def test_running_means_are_not_moved_by_the_warm_up(captures: list[tuple[Tensor, ...]]) -> None:
    network = nn.BatchNorm2d(3)
    passes, images = Graphed(network.forward, network), torch.rand(2, 3, 4, 4)
    expected = nn.BatchNorm2d(3)
    for _ in range(2):
        torch.testing.assert_close(passes(images), expected(images))
    torch.testing.assert_close(network.state_dict(), expected.state_dict())
    network.eval()
    passes(images)
    assert len(captures) == 1, "in eval mode it runs as it is"


@pytest.mark.parametrize(
    "key, value", [("use_gpu", False), ("accumulate", 2), ("recompute", True), ("compile", True)], ids=lambda v: str(v)
)
def test_refused_where_it_cannot_be_had(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"train.cuda_graphs=true: cannot be had with train.{key}={value}".lower()):
        Config().replace({"train.use_gpu": True, "train.cuda_graphs": True, f"train.{key}": value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["d2sm", "ratio", "all"])
def test_steps_on_a_gpu_are_those_without(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adam's first steps are as long for a gradient of rounding as for a large one.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    given = config(name, tmp_path, **{"train.use_gpu": True, "train.precision": precision, "train.ema": 0.9})
    cuda = torch.device("cuda")
    plain = TrainState(given, 10, device=cuda)
    graphed = TrainState(given.replace({"train.cuda_graphs": True}), 10, device=cuda)
    tolerance = 1e-4 if precision == "fp32" else 1e-2
    for step in range(8):
        wanted, seen = train_step(plain, row(step), step), train_step(graphed, row(step), step)
        torch.testing.assert_close(seen, wanted, rtol=tolerance, atol=tolerance / 100)
    torch.testing.assert_close(graphed.network.state_dict(), plain.network.state_dict(), rtol=tolerance, atol=1e-4)
