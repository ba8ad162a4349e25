"""A network that knows nothing of this project: trained on two workers, resumed, registered, looked up, evaluated."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from cluster.cli.main import main
from d2sm.inference import restore
from pipelines import experiment, registry
from pipelines.config import Config
from pipelines.evaluate import evaluate
from pipelines.runs import checkpoint
from pipelines.runs.trust import TrustError
from pipelines.train import fit
from tests.conftest import tiny_config
from tests.foreign.tiny_network import TinyNetwork
from tests.helpers.stores import new_store

pytestmark = pytest.mark.slow
NAME = "tests.foreign.tiny_network:TinyNetwork"


def configured(root: Path, storage: Path, name: str, **changes: object) -> Config:
    options = {"model__name": NAME, "model__options": {"width": 6}, "train__ema": 0.9, "evaluate__segmenter": None}
    config = tiny_config(root, storage, train__name=name)
    return config.replace({key.replace("__", "."): value for key, value in {**options, **changes}.items()})


@pytest.fixture(scope="module")
def outcome(ray_session: None, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> experiment.Outcome:
    storage = tmp_path_factory.mktemp("foreign")
    new_store(storage)
    changes = {"train__num_workers": 2, "train__cpus_per_worker": 0.5, "tracking__register_as": "mine"}
    return experiment.run(configured(scenes_root, storage, "two", **changes), quiet=True)


def test_it_is_trained_evaluated_and_registered(outcome: experiment.Outcome) -> None:
    assert outcome.record is not None and outcome.record.tags["backbone"] == f"{NAME} width=6"
    weights, _ = checkpoint.load_model(outcome.trained.checkpoint)
    fresh = TinyNetwork(6)
    assert list(weights.state_dict()) == list(fresh.state_dict())  # its own names
    fresh.load_state_dict(weights.state_dict())
    assert outcome.results.restored["25"].psnr is not None
    again = evaluate(outcome.trained.checkpoint, quiet=True)
    assert again.restored == outcome.results.restored


def test_it_is_looked_up_by_those_who_trust_it(
    outcome: experiment.Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, noisy = outcome.trained.uri, torch.rand(1, 3, 33, 47)
    with pytest.raises(TrustError, match=f"^model.name={NAME}: .*--trust.*trust=True"):
        registry.lookup("mine", uri=uri).load(cache=tmp_path)
    model = registry.lookup("mine", uri=uri).load(cache=tmp_path, trust=True)
    expected = restore(checkpoint.load_model(outcome.trained.checkpoint)[0], noisy, 25.0)
    torch.testing.assert_close(restore(model, noisy, 25.0), expected, rtol=0, atol=0)
    assert main(["models", "show", "mine/1", "--tracking-uri", uri]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    served = mlflow.pyfunc.load_model("models:/mine/1")
    found = served.predict(np.asarray(noisy), params={"sigma": 25.0})
    np.testing.assert_allclose(found, expected.clamp(0, 1).numpy(), atol=1e-6)


@pytest.mark.long
def test_a_stopped_run_ends_with_the_same_weights(outcome: experiment.Outcome) -> None:
    whole = outcome.trained
    parts = whole.config.replace({"train.name": "parts", "tracking.register_as": ""})
    stopped = fit(parts.replace({"train.max_steps": whole.step // 2}), quiet=True)
    assert stopped.step < whole.step
    resumed = fit(parts, quiet=True)
    one, other = (checkpoint.load_model(run.checkpoint)[0].state_dict() for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
