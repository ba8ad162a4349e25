"""`d2sm export`: a model by any of its names becomes a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.main import main
from d2sm.weights import fingerprint
from pipelines.config import Config
from pipelines.export import _name
from pipelines.runs import checkpoint
from tests.helpers.finished_runs import write_run

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the packages of d2sm[onnx]")


def test_a_run_becomes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs/first", Config(), perturbed_by="first")
    assert main(["export", "runs/first", "--to", "onnx"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "largest difference" in shown[0] and shown[-1] == "first.onnx"
    found = onnxruntime.InferenceSession("first.onnx", providers=["CPUExecutionProvider"]).get_modelmeta()
    weights = checkpoint.read_weights(run / checkpoint.name_of(8))
    assert found.custom_metadata_map["d2sm.weights"] == fingerprint(weights)
    assert found.custom_metadata_map["d2sm.backbone"] == "ffdnet width=4 depth=3"


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(write_run(tmp_path / "first", Config()))
    cases = {
        (str(tmp_path / "none"), "x.onnx"): "model=",
        (run, str(tmp_path)): f"{tmp_path}: is a folder",
        (run, str(tmp_path / "no/x.onnx")): "its folder does not exist",
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    cases[run, "~/no/x.onnx"] = f"{tmp_path}/no/x.onnx: its folder does not exist"
    for words, why in cases.items():
        assert main(["export", *words]) == 2
        (line,) = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ") and "loading" not in line
        ]
        assert why in line


def test_the_name_of_a_file_follows_from_the_model() -> None:
    cases = {
        "models:/net@best": "net", "net@best": "net", "models:/net/3": "net", "runs/first": "first",
        "runs/first/step-00000008": "first", "s3://bucket/runs/first": "first", ".": "model",
    }  # fmt: skip
    assert {model: _name(model) for model in cases} == cases
