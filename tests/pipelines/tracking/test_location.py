"""The store of a run on disk is found from the run, also after its project's folder was moved or copied."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import Config
from pipelines.registry import lookup, register
from pipelines.runs.folder import RunFolder
from pipelines.tracking import location, store
from pipelines.tracking.run import open_run
from pipelines.tracking.store import TrackingError
from tests.helpers.checkpoints import CONFIG, bundle_of


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a tracked run and a registered model. Copy it, never write to it."""
    project = tmp_path_factory.mktemp("original") / "a b"  # a space is written otherwise in a URI
    folder = RunFolder(project / "runs/first")
    config = Config().replace({"train.storage": str(project / "runs"), "train.name": "first"})
    uri = store.uri_of(config)
    with open_run(config, run_dir=folder.path, tags={}) as run:
        run.text("kept", "notes.txt")
    folder.write_info(run_id=run.id, page=run.page, store=location.recorded(uri, folder))
    config.save(folder.config_file)
    bundle = bundle_of(folder.path / "step-00000000", CONFIG)
    noisy = np.zeros((1, 3, 16, 16), np.float32)
    register(bundle, name="denoiser", run_id=run.id, uri=uri, alias="champion", example=noisy)
    return project


def run_of(project: Path) -> tuple[RunFolder, Config]:
    folder = RunFolder(project / "runs/first")
    return folder, Config().replace({"train.storage": "runs", "train.name": "first"})


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_database_is_recorded_relative_to_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/rows/first")
    assert location.recorded(f"sqlite:///{tmp_path}/runs/mlflow.db", folder) == "sqlite:///../../mlflow.db"
    assert location.recorded("http://server:5000", folder) == "http://server:5000"
    assert location.recorded("postgresql://me:secret@host/db", folder) == ""


def test_it_is_found_from_another_folder(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As recorded; and for a run of an earlier version, which recorded nothing, above its folder."""
    copy = shutil.copytree(project, tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder, config = run_of(copy)
    expected = (f"sqlite:///{copy}/runs/mlflow.db", "")
    assert location.find(folder, config) == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    assert location.find(folder, config) == expected
    info = json.loads(folder.info_file.read_text())
    assert info.pop("store") == "sqlite:///../mlflow.db"
    folder.info_file.write_text(json.dumps(info))
    assert location.find(folder, config) == expected
    assert location.likely(folder, config) == expected[0]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_store_without_the_run_is_refused_with_the_remedy(project: Path, tmp_path: Path) -> None:
    """And nothing is made in a database that a run.json names but that is somebody else's."""
    folder, config = run_of(shutil.copytree(project, tmp_path / "copy"))
    run_id = folder.read_info()["run_id"]
    shutil.move(tmp_path / "copy/runs/mlflow.db", tmp_path / "moved.db")
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE bookmarks (name)")
    folder.write_info(store="sqlite:///../../../foreign.db")
    before = (tmp_path / "foreign.db").read_bytes()
    match = rf"{folder.path}: its MLflow run {run_id} is not in .*foreign\.db.*tracking\.uri=sqlite:///.*--out FILE"
    with pytest.raises(TrackingError, match=match) as error:
        location.find(folder, config)
    assert "\n" not in str(error.value)
    assert (tmp_path / "foreign.db").read_bytes() == before
    given = f"sqlite:///{tmp_path}/moved.db"
    assert location.find(folder, config, asked=given) == (given, "")  # the remedy works
    with pytest.raises(TrackingError, match=r"none\.db \(no such file\)"):
        location.find(folder, config, asked=f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_server_that_is_away_is_no_error_unless_it_is_asked_for(tmp_path: Path) -> None:
    folder, config = run_of(tmp_path)
    folder.path.mkdir(parents=True)
    folder.write_info(run_id="abc", store="http://127.0.0.1:9")
    found = location.find(folder, config)
    assert found.uri == "http://127.0.0.1:9" and "does not answer" in found.away
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9.*does not answer"):
        location.find(folder, config, asked="http://127.0.0.1:9")


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_project_that_was_moved_or_copied_uses_its_own_artifacts(project: Path, tmp_path: Path, how: str) -> None:
    """A registered model loads from the new place, what is added is added there, and the old place stays as it was."""
    old = shutil.copytree(project, tmp_path / "old")
    store.prepare(f"sqlite:///{old}/runs/mlflow.db")  # as if the project had been made there
    new = tmp_path / "sub" / "new"
    new.parent.mkdir()
    shutil.move(old, new) if how == "moved" else shutil.copytree(old, new)
    before = files_in(old)
    folder, config = run_of(new)
    uri = location.find(folder, config).uri
    assert uri == f"sqlite:///{new}/runs/mlflow.db"
    record = lookup("denoiser@champion", uri=uri)
    assert record.source.startswith((new / "runs/mlartifacts").as_uri())
    if how == "copied":
        shutil.rmtree(old / "runs/mlartifacts")
        before = files_in(old)
    assert sum(tensor.numel() for tensor in record.load(cache=tmp_path / "cache").parameters()) > 0
    artifacts = store.client(uri).get_run(folder.read_info()["run_id"]).info.artifact_uri
    assert artifacts.startswith((new / "runs/mlartifacts").as_uri())
    with sqlite3.connect(new / "runs/mlflow.db") as database:  # no column is forgotten
        assert [line for line in database.iterdump() if (old / "runs").as_uri() in line] == []
    with open_run(config, run_dir=tmp_path / "second", tags={}, uri=uri) as run:
        run.text("added", "later.txt")
    assert len(list(new.rglob("later.txt"))) == 1
    assert files_in(old) == before and old.exists() == (how == "copied")


def test_a_database_that_was_copied_alone_keeps_its_artifacts(project: Path, tmp_path: Path) -> None:
    old = shutil.copytree(project, tmp_path / "old")
    store.prepare(f"sqlite:///{old}/runs/mlflow.db")
    shutil.copy(old / "runs/mlflow.db", tmp_path / "mlflow.db")
    record = lookup("denoiser@champion", uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert record.source.startswith((old / "runs/mlartifacts").as_uri())


@pytest.mark.parametrize("name", ["q?", "50%20"])
def test_a_database_lies_at_no_path_that_its_uri_would_not_mean(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the path is from: a key, the environment, the current folder, a run that was moved."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    odd = tmp_path / name
    odd.mkdir()
    (odd / "mlflow.db").touch()
    for changes, asked_by in (
        ({"train.storage": str(odd)}, "train.storage"),
        ({"tracking.uri": f"sqlite:///{tmp_path}/50%20/mlflow.db"}, "tracking.uri"),
    ):
        with pytest.raises(store.TrackingError, match=f"^{asked_by}: {tmp_path}/.*: MLflow's database cannot lie"):
            store.uri_of(Config().replace(changes))
    run = RunFolder.at(odd / "run")
    run.path.mkdir()
    run.info_file.write_text(json.dumps({"run_id": "abc", "store": "sqlite:///../mlflow.db"}))
    with pytest.raises(store.TrackingError, match=f"^{re.escape(str(run.info_file))}: .*cannot lie at a path with"):
        location.find(run, Config())
    monkeypatch.chdir(odd)
    with pytest.raises(store.TrackingError, match="^MLFLOW_TRACKING_URI: .*rename the folder"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        store.uri_of(Config())
    good = tmp_path / "a b#c%"
    assert store.uri_of(Config().replace({"tracking.uri": f"sqlite:///{good}/x.db"})) == f"sqlite:///{good}/x.db"
