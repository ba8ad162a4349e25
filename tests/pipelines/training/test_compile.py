"""train.compile: the same step and the same names of weights; where it cannot be had, one line and no other way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config import Config, ConfigError
from pipelines.training.state import TrainState
from pipelines.training.step import train_step

TINY = {"model.width": 8, "model.depth": 3, "loss.weight": 0, "train.batch_size": 2}


def built(**changes: Any) -> TrainState:
    return TrainState(Config().replace(TINY | {f"train.{key}": value for key, value in changes.items()}), 10)


@pytest.mark.long
def test_a_compiled_network(without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor  # some seconds

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    row = {"clean": pixels, "sigma": np.array([10, 40], np.float32), "seed": np.arange(2)}
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "none"))}):
        with pytest.raises(ConfigError, match=r"train.compile=true: .*compiler.*set train.compile=false") as error:
            train_step(built(compile=True), row, 0)
        assert "\n" not in str(error.value)
    torch._dynamo.reset()
    plain, compiled = built(), built(compile=True)
    assert compiled.state_dict()["model"].keys() == plain.state_dict()["model"].keys()
    for step in range(2):
        wanted, seen = train_step(plain, row, step), train_step(compiled, row, step)
        torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(compiled.network.state_dict(), plain.network.state_dict(), rtol=1e-4, atol=1e-6)
