"""A segmenter of somebody else: written outside the packages, and one from the registry, both judging on two actors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.runs.results import Results
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of

CODE = """
import torch
from torch import nn

class Judge(nn.Module):
    '''Three classes by brightness.'''

    def __init__(self):
        super().__init__()
        self.steps = nn.Parameter(torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1))

    def forward(self, image):
        return -(image.mean(1, keepdim=True) - self.steps).abs()

def judge(weights=None):
    return Judge().eval()
"""
REGISTER = """
import sys
import mlflow, numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from foreign_judge import judge

sides = [TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))]
with mlflow.start_run():
    mlflow.pytorch.log_model(
        judge(), name="judge", input_example=np.zeros((2, 3, 32, 48), np.float32), pip_requirements=["torch"],
        signature=ModelSignature(Schema(sides), Schema(sides)), registered_model_name="judge",
    )
mlflow.MlflowClient().set_registered_model_alias("judge", "champion", "1")
"""
LABELS = """
classes:
- {name: dark, id: [26, 24, 25, 33], colour: [0, 0, 142]}
- {name: grey, id: [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 27, 28, 31, 32], colour: [128, 64, 128]}
- {name: bright, id: 23, colour: [70, 130, 180]}
ignore: [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255]
"""


@pytest.mark.slow
@pytest.mark.long
def test_foreign_segmenters_judge_on_two_actors(scenes_root: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign_judge.py").write_text(CODE)
    (tmp_path / "three.yaml").write_text(LABELS)
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def done(*words: str) -> str:
        found = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout

    done("-c", REGISTER)
    config = tiny_config(scenes_root, tmp_path, data__labels=str(tmp_path / "three.yaml"), tracking__uri=uri)
    bundle = bundle_of(tmp_path / "step-00000000", config)
    results = []
    for actors in (2, 0):
        done(
            "-m", "cluster.cli", "evaluate", str(bundle), "--out", f"out{actors}.json", "--quiet",
            f"evaluate.actors={actors}", "evaluate.sigmas=[25]", "evaluate.segmenter=foreign_judge:judge",
            "evaluate.segmenters=[models:/judge@champion]",
        )  # fmt: skip
        results.append(Results.load(tmp_path / f"out{actors}.json"))
    assert results[0] == results[1]
    (label, registered), *_ = results[0].judges.items()
    assert (label, registered.segmenter) == ("models-judge-champion", "models:/judge@champion")
    score = results[0].restored["25"]
    assert score.miou is not None and set(score.iou) <= {"dark", "grey", "bright"}
    assert score.judges[label].miou == pytest.approx(score.miou, abs=1e-3)  # the same network, as a program
    assert np.isfinite(score.miou) and json.loads((tmp_path / "out2.json").read_text())["labels"].startswith("three-")
