"""A run's folder: where it is, whose run it is, what is swept and pruned, and the same folder on another node."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import Config, ConfigError, load
from pipelines.runs import checkpoint, storage
from pipelines.runs.folder import RunFolder, named, runs_folder
from pipelines.runs.names import check_name, shortened
from tests.helpers.checkpoints import CONFIG, bundle_of, with_best

NAMED = CONFIG.replace({"train.name": "run"})


def config_in(storage: Path) -> Config:
    return NAMED.replace({"train.storage": str(storage)})


def test_it_is_found_from_the_configuration_and_from_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.of(config_in(tmp_path))
    assert folder == RunFolder.at(tmp_path / "run") == RunFolder(tmp_path / "run")
    assert folder.place == str(tmp_path / "run") and folder.place_of("step-1") == str(tmp_path / "run" / "step-1")
    assert not folder.path.exists()
    monkeypatch.chdir(tmp_path)
    assert RunFolder.of(NAMED).path == tmp_path / "runs" / "run"


def test_at_a_uri_it_is_a_copy_and_another_nodes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    folder = RunFolder.of(NAMED.replace({"train.storage": "memory://bucket/runs?region=here"}))
    assert folder.uri == folder.place == "memory://bucket/runs/run?region=here"
    assert folder.place_of("step-1") == "memory://bucket/runs/run/step-1?region=here"
    assert folder.path.is_relative_to(tmp_path / "here") and folder.path.name == "run"
    assert RunFolder.at(folder.place) == folder
    assert folder.path == storage.copy_of(folder.place) and RunFolder.at(folder.path) == folder
    sent = pickle.dumps(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    arrived = pickle.loads(sent)
    assert arrived.place == folder.place and arrived.path.is_relative_to(tmp_path / "there")


def test_its_files_have_the_names_that_earlier_versions_wrote(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    named = [folder.config_file, folder.info_file, folder.results_file, folder.skipped_file, folder.pictures]
    assert [path.relative_to(tmp_path).as_posix() for path in named] == [
        "config.yaml", "run.json", "results.json", "skipped.json", "pictures",
    ]  # fmt: skip


def test_what_is_known_of_a_run_is_added_to(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_info() == {}
    folder.write_info(run_id="abc", page="#/runs/abc")
    folder.write_info(evaluated=4, run_id="def")
    assert folder.read_info() == json.loads((tmp_path / "run.json").read_text())
    assert folder.read_info() == {"run_id": "def", "page": "#/runs/abc", "evaluated": 4}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": 1', "[" * 900, '{"a": ' + "9" * 5000 + "}"])
def test_a_broken_run_json_is_one_line_with_the_remedy(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.info_file.write_text(text)
    for call in (folder.read_info, lambda: folder.write_info(evaluated=1)):
        with pytest.raises(ConfigError) as error:
            call()
        assert str(error.value).startswith(f"{tmp_path / 'run.json'}: ") and "\n" not in str(error.value)
        assert str(error.value).endswith("or remove it: the run then goes on with a new MLflow run")
    assert folder.info_file.read_text() == text
    folder.info_file.unlink()
    folder.write_info(evaluated=1)


def test_a_new_run_and_the_same_run_again(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    folder = RunFolder.of(config)
    for _ in range(2):
        folder.open(config, "abc")
        assert load(folder.config_file) == config and folder.read_info() == {"fingerprint": "abc"}


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    """With another configuration or other data; what was noted of the first attempt goes."""
    config = config_in(tmp_path)
    folder = RunFolder.of(config)
    for changes, fingerprint, replaced in (
        ({}, "abc", ""),
        ({"train.lr": 1e-3}, "abc", f"train.lr={config.train.lr}"),
        ({}, "def", "train.lr=0.001, other data"),
        ({"evaluate.pictures": 0}, "def", f"evaluate.pictures={config.evaluate.pictures}"),
    ):
        folder.check(config.replace(changes), fingerprint)
        assert folder.open(config.replace(changes), fingerprint) == replaced
        assert load(folder.config_file) == config.replace(changes)
        assert folder.read_info() == {"fingerprint": fingerprint} and not folder.skipped_file.exists()
        folder.write_info(run_id="first")
        folder.skipped_file.write_text("{}")


def test_where_a_file_is_lost_the_checkpoint_says_what_the_run_is(tmp_path: Path) -> None:
    """Messages advise to remove run.json for a new MLflow run; a copied folder may lack config.yaml."""
    config = config_in(tmp_path)
    folder = RunFolder.of(config)
    folder.open(config, "abc")
    bundle_of(folder.path / checkpoint.name_of(2), config, data="abc")
    for lost in ([folder.info_file], [folder.config_file], [folder.info_file, folder.config_file]):
        for file in lost:
            file.unlink()
        for changes, fingerprint, start in (
            ({}, "def", "train.name=run: .*abc"),
            ({"train.lr": 1.0}, "abc", "train.lr="),
        ):
            for compare in (folder.check, folder.open):
                with pytest.raises(ConfigError, match=f"^{start}"):
                    compare(config.replace(changes), fingerprint)
        assert not any(file.exists() for file in lost)
        folder.check(config, "abc")
        folder.open(config, "abc")
        assert load(folder.config_file) == config and folder.read_info() == {"fingerprint": "abc"}


def test_a_name_that_belongs_to_another_run(tmp_path: Path) -> None:
    """`test_effects` goes through all keys."""
    config = config_in(tmp_path)
    folder = RunFolder.of(config)
    folder.open(config, "abc")
    bundle_of(folder.path / checkpoint.name_of(2), config)
    for changes, fingerprint, start in (({"train.lr": 1.0}, "abc", "train.lr=1.0"), ({}, "def", "train.name=run")):
        with pytest.raises(ConfigError) as error:
            folder.open(config.replace(changes), fingerprint)
        assert str(error.value).startswith(start) and "\n" not in str(error.value)
    assert folder.read_info() == {"fingerprint": "abc"} and load(folder.config_file) == config


def test_what_killed_writers_and_earlier_versions_left_is_swept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    whole = bundle_of(tmp_path / checkpoint.name_of(4), CONFIG)
    kept = tmp_path / "notes.txt"
    for name in ("notes.txt", ".run.json", ".run.json.partial", "checkpoint_manager_snapshot.json"):
        (tmp_path / name).write_text("{}")
    halves = [tmp_path / "step-00000008", tmp_path / ".step-00000012"]
    for half in halves:
        half.mkdir()
        (half / checkpoint.STATE).write_bytes(b"half")
    assert folder.sweep() == halves
    assert set(tmp_path.iterdir()) == {whole, kept}


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (100, 2, 10):
        bundle_of(tmp_path / checkpoint.name_of(step), CONFIG)
    folder = RunFolder(tmp_path)
    folder.prune(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert folder.latest() == tmp_path / "step-00000100"


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    """Of each one that is kept, so that every one of them is enough to go on from."""
    with_best(tmp_path, (10, 10), (20, 20), (30, 20), (40, 20), (50, 50), (60, 50))
    folder = RunFolder(tmp_path)
    folder.prune(3)
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["20", "40", "50", "60"]
    folder.prune(1)
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["50", "60"]
    assert folder.latest() == tmp_path / "step-00000060" and folder.selected() == tmp_path / "step-00000050"
    assert checkpoint.resolve(tmp_path) == tmp_path / "step-00000050"  # what `denoise --model` takes


def test_a_best_checkpoint_that_is_gone_is_no_other_one(tmp_path: Path) -> None:
    with_best(tmp_path, (10, 10), (20, 10))
    damage(tmp_path / "step-00000010")
    with pytest.raises(checkpoint.CheckpointError) as error:
        RunFolder(tmp_path).selected()
    assert "step-00000010: the best checkpoint (psnr.sigma25 20.1000 at step 10)" in str(error.value)
    assert "copy it back" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("entry", [7, {"metric": "psnr.sigma25"}, {"metric": "x", "step": 10**9, "value": 1.0}])
def test_a_best_entry_of_a_stranger_is_one_line(tmp_path: Path, entry: Any) -> None:
    bundle_of(tmp_path / "step-00000020", CONFIG, step=20, best=entry)
    RunFolder(tmp_path).prune(1)
    with pytest.raises(checkpoint.CheckpointError, match=r"meta\.json") as error:
        checkpoint.resolve(tmp_path)
    assert "\n" not in str(error.value)


def damage(folder: Path) -> None:
    (folder / checkpoint.MODEL).write_bytes(b"cut short")


def test_pruning_never_removes_the_last_complete_one(tmp_path: Path) -> None:
    for step in (2, 10, 100, 200):
        bundle_of(tmp_path / checkpoint.name_of(step), CONFIG)
    for step in (10, 100, 200):
        damage(tmp_path / checkpoint.name_of(step))
    folder = RunFolder(tmp_path)
    folder.prune(1)
    assert folder.latest() == tmp_path / "step-00000002"
    bundle_of(tmp_path / checkpoint.name_of(150), CONFIG)
    folder.prune(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000150", "step-00000200"]
    damage(tmp_path / "step-00000150")
    folder.prune(1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    folder = RunFolder.of(config)
    folder.open(config, "abc")
    bundle_of(folder.path / checkpoint.name_of(2), config)
    damage(folder.path / checkpoint.name_of(2))
    with pytest.raises(checkpoint.CheckpointError) as error:
        folder.open(config, "abc")
    assert str(error.value).startswith(f"{folder.path}: no checkpoint to go on from (step-00000002/model.safetensors")
    assert "train.name" in str(error.value) and (folder.path / checkpoint.name_of(2)).is_dir()


def test_a_run_gets_a_name() -> None:
    assert named(NAMED) is NAMED
    found = named(Config().replace({"recipe": "demo"})).train.name
    assert found.startswith("demo-") and len(found) == len("demo-20240101-120000")


@pytest.mark.parametrize(
    "name", ["../elsewhere", "a/b", ".hidden", "..", "/", "a/", "a\x1b[31m", "a\nb", "step-00000001", "x" * 256]
)
def test_a_name_that_is_a_path(name: str, tmp_path: Path) -> None:
    config = Config().replace({"train.name": name, "train.storage": str(tmp_path)})
    for refuse in (named, RunFolder.of):
        with pytest.raises(ConfigError, match="train.name=") as error:
            refuse(config)
        assert repr(name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="--name="):
        check_name(name, "--name")


def test_a_recipe_that_is_a_path_names_no_run(tmp_path: Path) -> None:
    config = Config().replace({"recipe": "../../x", "train.storage": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"^recipe='\.\./\.\./x': not a plain name"):
        named(config)
    for name in ("mlflow.db", "mlflow.db.lock", "mlartifacts"):
        with pytest.raises(ConfigError, match=f"^train.name={name}: MLflow's own"):
            RunFolder.of(Config().replace({"train.name": name}))
    with pytest.raises(ConfigError, match="^train.name='': not a plain name"):
        RunFolder.of(config)


def test_a_long_name_is_shortened_with_a_digest() -> None:
    fits, long = "r" * 240, "r" * 300
    assert shortened(fits, "-seed1234567890", key=fits) == f"{fits}-seed1234567890"
    names = {shortened(text, f"-seed{seed}", key=text) for text in (long, long + "s") for seed in (0, 1)}
    assert len(names) == 4 and all(len(name) == 255 and name[-6:-1] == "-seed" for name in names)
    assert shortened("\u00e9" * 200, "-seed1", key="a") == shortened("\u00e9" * 200, "-seed1", key="a")
    assert len(shortened("\u00e9" * 200, "-seed1", key="a").encode()) <= 255


def test_what_writes_to_folders_only(tmp_path: Path) -> None:
    assert runs_folder(config_in(tmp_path), what="a sweep") == tmp_path
    with pytest.raises(ConfigError, match="train.storage=s3://bucket/runs: a sweep"):
        runs_folder(CONFIG.replace({"train.storage": "s3://bucket/runs"}), what="a sweep")


def test_a_folder_that_names_a_uri_is_a_copy_in_the_own_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's folder would send later writes to a bucket of the stranger's choice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for text in ("memory://theirs/run", "../..", "\0", "memory://a/.."):
        (stranger / storage.SOURCE).write_text(text)
        assert storage.uri_of(stranger) is None and RunFolder.at(stranger) == RunFolder(stranger)
    copy = storage.copy_of("memory://ours/run")
    (copy / storage.SOURCE).write_text("memory://theirs/run")
    assert RunFolder.at(copy).uri is None
    assert storage.uri_of(storage.copy_of("memory://ours/run")) == "memory://ours/run"  # written again


def test_a_uri_whose_last_part_leads_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="^memory://a/b/..='..': not a plain name"):
        RunFolder.at("memory://a/b/..")
    assert not list(tmp_path.iterdir())


def test_a_copy_says_what_it_is_a_copy_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copies = {storage.copy_of(uri) for uri in ("memory://a/run", "memory://b/run")}
    assert len(copies) == 2 and {storage.uri_of(copy) for copy in copies} == {"memory://a/run", "memory://b/run"}
