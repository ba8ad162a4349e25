"""`d2sm models import`: published weights become a registered model that every verb takes by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.cli.main import main
from d2sm.models import FFDNet
from d2sm.weights import fingerprint
from pipelines import open_model
from pipelines.config import Config
from pipelines.evaluate import evaluate
from pipelines.import_weights import import_weights
from pipelines.networks.published import KAIR, MATLAB, PublishedError
from pipelines.registry import RegistryError, lookup, model_folder
from tests.helpers.published import authors, convolutions, write_kair, write_matlab
from tests.helpers.stores import new_store

LAYERS = convolutions()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_store(tmp_path_factory.mktemp("store"))


def test_what_is_registered(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_matlab(tmp_path / "color.mat", LAYERS)
    words = ["--alias", "published", "--source", "github.com/x", "--licence", "MIT", "--tracking-uri", uri]
    assert main(["models", "import", str(file), "--as", "net", *words]) == 0
    shown = capsys.readouterr().out
    assert "registered net version 1 published" in shown and "MIT" in shown
    tags = lookup("net@published", uri=uri).tags
    assert {key: tags[f"imported.{key}"] for key in ("form", "file", "source", "licence")} == {
        "form": MATLAB, "file": "color.mat", "source": "github.com/x", "licence": "MIT",
    }  # fmt: skip
    assert tags["imported.convention"].startswith("RGB in [0, 1]") and tags["backbone"] == "ffdnet width=12 depth=4"
    assert "objective" not in tags and "step" not in tags
    network = open_model("net@published", uri=uri)
    assert tags["weights.fingerprint"] == fingerprint(network.state_dict())
    noisy = torch.rand(1, 3, 10, 14)
    assert (network(noisy, 20.0) - authors(LAYERS, noisy, 20.0)).abs().max() < 1e-5
    assert main(["models", "list", "--tracking-uri", uri]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["net", "1", "published", "imported"]


def test_no_licence_is_said_to_be_none(tmp_path: Path, uri: str) -> None:
    done = import_weights(write_kair(tmp_path / "kair.pth", LAYERS), "bare", uri=uri)
    assert (done.form, done.known) == (KAIR, "")
    assert done.record.tags["imported.licence"] == "no licence stated"
    assert done.record.tags["imported.source"] == "no source stated"


def test_the_other_verbs_take_it_by_name(
    tmp_path: Path, uri: str, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    import_weights(write_kair(tmp_path / "kair.pth", LAYERS), "verbs", uri=uri)
    keys = [f"data.root={scenes_root}", "evaluate.sigmas=[25]", "evaluate.actors=0", "evaluate.limit=1"]
    assert main(["evaluate", "models:/verbs", *keys, "--quiet"]) == 0 and (tmp_path / "results.json").exists()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    assert main(["denoise", "grey.png", "out.png", "--model", "models:/verbs/1", "--sigma", "10"]) == 0
    assert abs(np.asarray(Image.open("out.png")).mean() - 90) < 10


@pytest.mark.parametrize("end", ["in", "out"])
def test_a_network_that_swaps_red_and_blue_is_refused(tmp_path: Path, uri: str, end: str) -> None:
    network = FFDNet(width=12, depth=3)
    swapped = [*range(8, 12), *range(4, 8), *range(4)]
    state = network.state_dict()
    if end == "in":
        state["body.0.weight"][:, :12] = state["body.0.weight"][:, swapped]
    else:
        state["body.4.weight"] = state["body.4.weight"][swapped]
    file = tmp_path / "swapped.pth"
    torch.save(state, file)
    with pytest.raises(PublishedError, match=r"swapped.pth: .*red \[0.8, 0.2, 0.2\] becomes \[0.2, 0.2, 0.8\]"):
        import_weights(file, "swapped", uri=uri)


def test_what_is_refused_is_not_registered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri, file = f"sqlite:///{tmp_path}/none.db", write_kair(tmp_path / "kair.pth", LAYERS)
    cases = {
        (str(tmp_path / "gone.pth"), "--as", "net"): f"{tmp_path}/gone.pth: No such file",
        (str(file), "--as", "a/b"): "--as='a/b'",
        (str(file), "--as", "net", "--alias", "latest"): "alias 'latest'",
        (str(file), "--as", "net", "--source", "https://u:hunter22secret@host/x"): "--source",
    }
    for words, why in cases.items():
        assert main(["models", "import", *words, "--tracking-uri", uri]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ")]
        assert why in line and "hunter22secret" not in line
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(RegistryError):
        model_folder("models:/net", uri=uri)


@pytest.mark.slow
def test_published_weights_reach_the_published_numbers(
    shared: Path, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files are one network; 2 images of McMaster by `evaluate`, to the digits measured when this was written."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for file in ("ffdnet_color.mat", "ffdnet_color_kair.pth"):
        done = import_weights(shared / "data/weights" / file, "ffdnet-color", uri=uri)
        assert done.known == "the published FFDNet for colour images"
    first, second = (lookup(f"ffdnet-color/{version}", uri=uri).tags for version in (1, 2))
    assert first["weights.sha256"] == second["weights.sha256"]
    keys = {
        "data.root": str(shared / "data/denoising/mcmaster"), "data.layout": "folder", "data.val_split": "",
        "evaluate.sigmas": [25, 50], "evaluate.limit": 2, "evaluate.actors": 0,
    }  # fmt: skip
    results = evaluate("models:/ffdnet-color/2", Config().replace(keys))
    measured = {level: score.psnr for level, score in results.restored.items()}
    assert measured == pytest.approx({"25": 30.891, "50": 27.771}, abs=0.002)
