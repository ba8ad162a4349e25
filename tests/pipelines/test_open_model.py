"""A model by whatever names it: the same one, and the same message where there is none, for Python and every verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.cli.main import main
from d2sm.inference import restore
from pipelines.data.images import read_rgb, write_png
from pipelines.denoise import denoise
from pipelines.evaluate import evaluate
from pipelines.inference.samples import pixels, tensor
from pipelines.registry import RegistryError, model_folder, open_model, register
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import CheckpointError
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.stores import new_store

References = Callable[[Path], str]


@dataclass(frozen=True)
class Known:
    """A run with one checkpoint, which is also registered as opened/1, with the alias champion, in the store `uri`."""

    run: Path
    uri: str
    network: nn.Module
    results: dict[str, object]


@pytest.fixture(scope="module")
def known(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    run = tmp_path_factory.mktemp("storage") / "run"
    uri = new_store(tmp_path_factory.mktemp("store"))
    config = tiny_config(
        scenes_root, run.parent, train__name="run", evaluate__actors=0, evaluate__limit=1, evaluate__sigmas=[25],
        tracking__uri="",
    )  # fmt: skip
    folder = bundle_of(run / checkpoint.name_of(0), config)
    register(folder, name="opened", run_id=None, uri=uri, alias="champion")
    return Known(run, uri, checkpoint.load_model(folder)[0], evaluate(folder, quiet=True).flat())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, for downloads, and no store that is found without being named."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(
    params=[
        lambda run: str(run),
        lambda run: str(run / checkpoint.name_of(0)),
        lambda run: run.as_uri(),
        lambda run: (run / checkpoint.name_of(0)).as_uri(),
        lambda run: "models:/opened@champion",
        lambda run: "models:/opened/1",
        lambda run: "models:/opened",
        lambda run: "opened@champion",
    ],
    ids=[
        "run",
        "checkpoint",
        "run's URI",
        "checkpoint's URI",
        "models:alias",
        "models:version",
        "models:name",
        "alias",
    ],
)
def reference(request: pytest.FixtureRequest, known: Known) -> str:
    made: References = request.param
    return made(known.run)


def test_python_opens_it(reference: str, known: Known) -> None:
    model = open_model(reference, uri=known.uri)
    assert not model.training
    for name, weights in known.network.state_dict().items():
        assert torch.equal(model.state_dict()[name], weights)


def test_denoise_opens_it(reference: str, known: Known, tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", photograph)
    words = ["--sigma", "25", "--model", reference, "--tracking-uri", known.uri]
    assert main(["denoise", "a.png", "b.png", *words]) == 0
    np.testing.assert_array_equal(read_rgb(tmp_path / "b.png"), pixels(restore(known.network, tensor(photograph), 25)))


def test_evaluate_opens_it(reference: str, known: Known, tmp_path: Path) -> None:
    assert main(["evaluate", "--out", "results.json", "--quiet", reference, f"tracking.uri={known.uri}"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["restored"]["25"]["psnr"] == known.results["psnr.sigma25"]


def test_the_verbs_functions_open_it_too(known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", known.uri)
    write_png(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    assert denoise("a.png", "b.png", model="opened@champion", sigma=25) == [Path("b.png")]
    assert evaluate("opened@champion", quiet=True).flat() == known.results


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere", "model=nowhere: no such folder"),
        ("/nowhere/at/all", "model=/nowhere/at/all: no such folder"),
        ("a/b@c", "model=a/b@c: no such folder"),
        ("opened/2", "model=opened/2: no such folder"),
        ("opened@champoin", "opened@champoin: no such alias; opened has champion; did you mean champion?"),
        ("models:/opend", "opend: no such model"),
        ("models:/opened/2", "opened/2: no such version"),
        ("models:/a/b/c", "models:/a/b/c: a registered model is given as"),
        ("empty", "empty: no complete checkpoint there"),
    ],
)
def test_what_is_not_there_has_one_message(
    reference: str, message: str, known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_png(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises((RegistryError, CheckpointError)) as error:
        open_model(reference, uri=known.uri)
    assert str(error.value).startswith(message)
    for words in (
        ["denoise", "a.png", "b.png", "--sigma", "25", "--model", reference, "--tracking-uri", known.uri],
        ["evaluate", reference, f"tracking.uri={known.uri}"],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err == f"d2sm: {error.value}\n"


def test_a_folder_comes_before_a_registered_model(known: Known, tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "opened@champion", checkpoint.load_model(known.run / checkpoint.name_of(0))[1])
    assert model_folder("opened@champion", uri=known.uri) == Path(folder.name)
    assert model_folder("models:/opened@champion", uri=known.uri).is_relative_to(tmp_path / "home")


def test_a_device_that_is_not_there(known: Known) -> None:
    for device in ("gpu", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(RegistryError, match=f"device={device}"):
            open_model(known.run, device=device)
