"""Segmenters that a store keeps."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines import train
from pipelines.config import Config
from pipelines.evaluate import evaluate
from pipelines.networks.segmenters import SegmenterError
from pipelines.recipes import recipe
from pipelines.runs import checkpoint
from pipelines.tracking import store as stores
from pipelines.tracking.segmenter import evaluation_segmenter, load_segmenter, segmenter_store
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.stores import new_store

NAME = "models:/eyes@champion"


class Eyes(nn.Module):
    """A random linear map from a pixel and its neighbours to logits; halves what it is given while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.drop = nn.Conv2d(3, 19, 3, padding=1), nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.drop(self.map(image))
        return logits


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a store with the network above as version 1 of "eyes", its champion."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    folder = tmp_path_factory.mktemp("eyes")
    anything = TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))
    signature = ModelSignature(Schema([anything]), Schema([TensorSpec(np.dtype("float32"), (-1, 19, -1, -1))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder))
        patch.chdir(folder)
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                Eyes().eval(), name="eyes", input_example=np.zeros((2, 3, 32, 48), np.float32), signature=signature,
                pip_requirements=["torch"], registered_model_name="eyes",
            )  # fmt: skip
        mlflow.MlflowClient().set_registered_model_alias("eyes", "champion", "1")
    return f"sqlite:///{folder}/mlflow.db"


def test_a_registered_network(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)
    loaded = load_segmenter(NAME, uri=uri)
    image = torch.rand(1, 3, 40, 56)
    torch.testing.assert_close(loaded(image), Eyes().eval()(image))
    assert not loaded.training and not any(weights.requires_grad for weights in loaded.parameters())
    # Other code of the process, which has a store of its own, notices nothing; nor is a store made for it.
    changed = {name for name, value in os.environ.items() if before[2].get(name) != value}
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before[:2]
    assert all(name.startswith("MLFLOW_") and "URI" not in name and "PICKLE" not in name for name in changed)
    assert list(tmp_path.iterdir()) == []


def test_what_the_store_does_not_have(uri: str) -> None:
    with pytest.raises(SegmenterError, match=r"^segmenter='models:/nose@champion': nose: no such model.*has eyes"):
        load_segmenter("models:/nose@champion", uri=uri)
    with pytest.raises(SegmenterError, match="no such file, so no models"):
        load_segmenter(NAME, uri=f"{uri}.gone")


def kept(uri: str) -> Path:
    """Where the store keeps the files of "eyes"."""
    client = stores.client(uri)
    return Path(client.get_model_version_download_uri("eyes", "1").removeprefix("file://"))


@pytest.mark.parametrize("name", ["code/eyes.py", "data/pickle_module_info.txt", "data/model.pth", "data/extra.so"])
def test_a_file_that_an_exported_program_does_not_need_is_refused(uri: str, name: str, tmp_path: Path) -> None:
    """MLflow's own loader imports code/ and what pickle_module_info.txt names, and unpickles model.pth."""
    planted = kept(uri) / name
    planted.parent.mkdir(exist_ok=True)
    module = tmp_path / "planted_module.py"
    module.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()")
    planted.write_text("planted_module" if name.endswith(".txt") else module.read_text())
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SegmenterError, match=f"^segmenter='{NAME}': {name}"):
            patch.syspath_prepend(tmp_path)
            load_segmenter(NAME, uri=uri)
    finally:
        planted.unlink()
        if name.startswith("code/"):
            planted.parent.rmdir()
    assert not (tmp_path / "ran").exists()


def test_a_program_that_would_run_code_is_refused(uri: str, tmp_path: Path) -> None:
    """What makes torch's own loader run code: see tests/pipelines/networks/test_exported.py."""
    program = kept(uri) / "data/model.pt2"
    good = program.read_bytes()
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("model/data/constants/custom_obj_0", b"")
    try:
        with pytest.raises(
            SegmenterError, match=f"^segmenter='{NAME}': model.pt2: record 'data/constants/custom_obj_0'"
        ):
            load_segmenter(NAME, uri=uri)
    finally:
        program.write_bytes(good)


def test_a_named_network_needs_no_store() -> None:
    assert load_segmenter("tests.helpers.segmenters:segmenter", uri="ftp://nowhere") is not None
    config = Config().replace({"train.storage": "s3://bucket/runs", "evaluate.segmenter": None})
    assert evaluation_segmenter(config) is None and segmenter_store(config) == ""


@pytest.mark.parametrize("named_by", ["tracking.uri", "MLFLOW_TRACKING_URI", "train.storage"])
def test_it_is_looked_for_in_the_runs_own_store(uri: str, named_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config().replace({"evaluate.segmenter": NAME})
    if named_by == "tracking.uri":
        config = config.replace({named_by: uri})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////another/mlflow.db")
    elif named_by == "train.storage":
        config = config.replace({named_by: str(Path(uri.removeprefix("sqlite:///")).parent)})
    else:
        monkeypatch.setenv(named_by, uri)
    assert evaluation_segmenter(config) is not None
    assert segmenter_store(config) == uri


@pytest.mark.slow
@pytest.mark.parametrize("actors", [0, 1])
def test_an_evaluation_uses_it(ray_session: None, uri: str, scenes_root: Path, tmp_path: Path, actors: int) -> None:
    """Known by tracking.uri alone; the actors' processes do not even have that."""
    config = tiny_config(
        scenes_root, tmp_path, tracking__uri=uri, evaluate__segmenter=NAME, evaluate__actors=actors,
        evaluate__sigmas=[25],
    )  # fmt: skip
    results = evaluate(bundle_of(tmp_path / checkpoint.name_of(0), config), quiet=True)
    assert results.segmenter == NAME and results.clean.miou is not None and results.clean.miou > 0


@pytest.mark.long
def test_a_training_of_a_blind_backbone_uses_it(ray_session: None, uri: str, scenes_root: Path, tmp_path: Path) -> None:
    """Two workers under DDP: CBDNet's own objective and the segmenter's cross-entropy, with labels in the stream.

    The workers are told the store.
    """
    own = recipe("cbdnet_own").loss.terms
    config = tiny_config(
        scenes_root, tmp_path, train__name="blind", train__max_steps=2, train__epochs=1, tracking__uri=uri,
        data__crop_size=32, model__name="cbdnet", model__width=96, model__depth=12, train__log_every=1,
        loss__weight=0, loss__l1=0, loss__mse=own["mse"], loss__noise_asymmetry=own["noise_asymmetry"],
        loss__noise_tv=own["noise_tv"], loss__cross_entropy=0.5, loss__segmenter=NAME,
        evaluate__limit=1, evaluate__sigmas=[25], evaluate__actors=0,
    )  # fmt: skip
    assert segmenter_store(config) == uri
    blind = train.fit(config, quiet=True)
    assert blind.step == 2 and blind.metrics["loss.cross_entropy"] > 0
    assert {"loss.mse", "loss.noise_asymmetry", "loss.noise_tv"} <= blind.metrics.keys()
    assert checkpoint.load_model(blind.checkpoint)[0].blind
    psnr = evaluate(blind.checkpoint, quiet=True).restored["25"].psnr
    assert psnr is not None and math.isfinite(psnr)
