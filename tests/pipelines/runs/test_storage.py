"""Runs at a URI: on an S3 server and on another of fsspec's file systems, whole and half-written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from cluster.cli.main import main
from pipelines import experiment, registry
from pipelines.config import ConfigError
from pipelines.runs import checkpoint, names
from pipelines.runs import storage as remote
from pipelines.runs.folder import RunFolder
from pipelines.runtime import owner
from pipelines.tracking.store import TrackingError, uri_of
from pipelines.train import Trained, fit
from pipelines.training import initial
from tests.helpers.checkpoints import CONFIG, kept
from tests.helpers.s3_server import S3, SECRET


@pytest.fixture(scope="module")
def s3(ray_session: None) -> Iterator[S3]:
    """Ray's nodes have the secret in their environment, and so has this process."""
    with S3() as server:
        yield server


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest, s3: S3, tmp_path: Path) -> str:
    """A new run's URI. `memory` is one of fsspec's file systems that Arrow does not know."""
    return s3.uri(f"/{tmp_path.name}/run") if request.param == "s3" else f"memory://{tmp_path.name}/run"


def forget(place: str) -> None:
    """As on another machine."""
    shutil.rmtree(remote.copy_of(place))


def test_a_checkpoint_goes_there_and_comes_back(place: str) -> None:
    kept(place, 10, 20, 30)
    forget(place)
    last = RunFolder.at(place).refresh().latest()
    assert last is not None and last.name == "step-00000030"
    model, _ = checkpoint.load_model(last)
    assert all(bool((tensor == 30).all()) for tensor in model.state_dict().values())
    assert checkpoint.load_state(last)["step"] == 30
    assert checkpoint.resolve(remote.joined(place, "step-00000020")).name == "step-00000020"
    with pytest.raises(checkpoint.CheckpointError, match="no complete checkpoint there"):
        checkpoint.resolve(remote.joined(place, "step-00000010"))  # train.keep=2


def test_the_best_one_stays_there_and_is_fetched_where_the_model_is_asked_for(place: str) -> None:
    kept(place, 10, 20, 30, keep=1, best=10)
    _, steps = remote._listed(place)
    assert sorted(steps) == ["step-00000010", "step-00000030"]
    forget(place)
    folder = RunFolder.at(place).refresh()
    last = folder.latest()
    assert last is not None and last.name == "step-00000030"
    assert not (folder.path / "step-00000010").exists()  # pulled when it is needed
    model, _ = checkpoint.load_model(checkpoint.resolve(place))
    assert all(bool((tensor == 10).all()) for tensor in model.state_dict().values())


def test_half_written_ones_do_not_count_and_are_swept(place: str) -> None:
    kept(place, 10)
    files, path = remote.opened(place, asked_by="it")
    for step, meta in ((20, None), (30, b'{"sizes": {"state.'), (40, json.dumps({"sizes": {"state.pt": 5}}).encode())):
        folder = f"{path}/{checkpoint.name_of(step)}"
        files.create_dir(folder)
        for name, content in (("state.pt", b"1234"), ("meta.json", meta)):
            if content is not None:
                with files.open_output_stream(f"{folder}/{name}") as out:
                    out.write(content)
    forget(place)
    last = RunFolder.at(place).refresh().latest()
    assert last is not None and last.name == "step-00000010"
    kept(place, 50)
    _, steps = remote._listed(place)
    assert sorted(steps) == ["step-00000010", "step-00000050"]


def put(place: str, name: str, content: bytes) -> None:
    files, path = remote.opened(place, asked_by="it")
    if files.type_name != "s3":
        files.create_dir(f"{path}/{name}".rpartition("/")[0])
    with files.open_output_stream(f"{path}/{name}") as out:
        out.write(content)


def test_a_damaged_one_is_passed_over_there_and_mended_here(place: str, caplog: pytest.LogCaptureFixture) -> None:
    kept(place, 10, 20)
    copy = remote.copy_of(place)
    model = copy / "step-00000020" / checkpoint.MODEL
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # in the copy: it is fetched again
    assert RunFolder.at(place).refresh().latest() == model.parent and model.read_bytes() == whole
    put(place, f"step-00000020/{checkpoint.MODEL}", whole[:-1] + bytes([whole[-1] ^ 1]))
    forget(place)
    assert checkpoint.resolve(place).name == "step-00000010"
    (line,) = caplog.messages
    assert (
        "step-00000020" in line
        and "model.safetensors differs" in line
        and line.endswith("step-00000010 is used instead")
    )
    with pytest.raises(remote.RemoteError, match="step-00000020.*is damaged"):
        checkpoint.resolve(remote.joined(place, "step-00000020"))
    put(place, f"step-00000010/{checkpoint.MODEL}", b"cut short")
    with pytest.raises(remote.RemoteError, match="no complete checkpoint there"):
        RunFolder.at(place).refresh()


def left_behind(place: str, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """A run with a checkpoint there at step 10, and further ones that could not be sent; the files are real."""
    folder = RunFolder.at(place)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_info(run_id="first")
    kept(place, 10)

    def away(source: Path, system: object, path: str) -> None:
        raise remote.RemoteError(f"{path}: away")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_upload", away)
        for step in steps:
            with pytest.raises(remote.RemoteError, match="away"):
                kept(place, step)
    assert folder.latest() == folder.path / "step-00000010"  # as on every other node


def test_one_that_could_not_be_sent_is_sent_by_the_next_owner(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(place, monkeypatch, 20)
    folder = RunFolder.at(place)
    reader = folder.refresh().latest()  # who only reads sends nothing, and removes nothing
    assert reader is not None and reader.name == "step-00000010" and len(names.unsent(folder.path)) == 1
    with owner.owned(folder.path, remedy=""):
        last = folder.refresh().latest()
    assert last is not None and last.name == "step-00000020" and not names.unsent(folder.path)
    assert sorted(remote._listed(place)[1]) == ["step-00000010", "step-00000020"]
    assert caplog.messages == [f"{remote.joined(place, 'step-00000020')}: was not yet at the URI; it is now"]
    forget(place)
    again = RunFolder.at(place).refresh().latest()
    assert again is not None and checkpoint.load_state(again)["step"] == 20


def test_one_that_could_not_be_sent_stays_here_if_it_is_damaged_or_of_another_run(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(place, monkeypatch, 20, 30)
    folder = RunFolder.at(place)
    (whole, *_), (cut, *_) = names.unsent(folder.path)
    (cut / checkpoint.STATE).write_bytes(b"")
    put(place, "run.json", json.dumps({"run_id": "second"}).encode())  # begun anew on another machine
    with owner.owned(folder.path, remedy=""):
        last = folder.refresh().latest()
        assert last is not None and last.name == "step-00000010"
        assert len(caplog.messages) == 2 and all("another run" in line for line in caplog.messages)
        put(place, "run.json", json.dumps({"run_id": "first"}).encode())
        last = folder.refresh().latest()
        assert last is not None and last.name == "step-00000020"
    assert "damaged (state.pt has 0 bytes" in caplog.messages[-1] and cut.is_dir() and not whole.exists()


def test_one_that_is_there_no_more_is_moved_aside(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """As after the bucket was emptied: no run goes on from it, and it is not lost."""
    kept(place, 10, 20)
    system, path = remote.opened(place, asked_by="it")
    system.delete_dir(f"{path}/step-00000020")
    folder = RunFolder.at(place)
    with owner.owned(folder.path, remedy=""):
        last = folder.refresh().latest()
        assert last is not None and last.name == "step-00000010"
        system.delete_dir(f"{path}/step-00000010")
        assert folder.refresh().latest() is None
    ten, twenty = sorted(folder.path.glob("aside-step-*"))
    assert checkpoint.is_complete(ten) and checkpoint.is_complete(twenty)
    first, second = caplog.messages
    assert str(twenty) in first and str(ten) in second and "\n" not in first


def test_names_in_a_bucket_lead_nowhere(place: str, tmp_path: Path) -> None:
    """A marker that redirects later writes, files named in meta.json that lie elsewhere, and copies of checkpoints."""
    kept(place, 10)
    put(place, remote.SOURCE, b"memory://theirs/run")
    for name in ("../../planted", str(tmp_path / "planted"), ".d2sm-uri"):
        put(place, "step-00000020/meta.json", json.dumps({"sizes": {name: 4}}).encode())
        put(place, "step-00000020/planted", b"evil")
        put(place, "planted", b"evil")
        forget(place)
        folder = RunFolder.at(place).refresh()
        assert folder.uri == place and RunFolder.at(folder.path).uri == place
        last = folder.latest()
        assert last is not None and last.name == "step-00000010"
        assert not list(tmp_path.rglob("planted")) and not (folder.path.parent.parent / "planted").exists()
    put(place, "step-best/meta.json", b"{}")
    kept(place, 30, 40)
    assert sorted(remote._listed(place)[1]) == ["step-00000030", "step-00000040"]
    files, path = remote.opened(place, asked_by="it")
    assert files.get_file_info(f"{path}/step-best/meta.json").is_file


def test_files_of_a_run_go_there_and_come_back(place: str) -> None:
    folder = RunFolder.at(place)
    folder.pictures.mkdir(parents=True)
    (folder.pictures / "a.png").write_bytes(b"picture")
    folder.write_info(run_id="abc")
    folder.push(folder.pictures)
    forget(place)
    assert RunFolder.at(place).refresh().read_info() == {"run_id": "abc"}
    files, path = remote.opened(place, asked_by="it")
    with files.open_input_stream(f"{path}/pictures/a.png") as stream:
        assert stream.read() == b"picture"


@pytest.mark.parametrize("name", ["a b", "50%", "a%20b", "a#b", "a?b", "ü", "a[1]", "a+b"])
def test_a_picture_goes_there_by_the_name_of_its_photograph(name: str, tmp_path: Path) -> None:
    folder = RunFolder.at((tmp_path / "run").as_uri())
    folder.pictures.mkdir(parents=True)
    (folder.pictures / f"{name}.png").write_text(name)
    folder.push(folder.pictures)
    assert [path.name for path in (tmp_path / "run" / "pictures").iterdir()] == [f"{name}.png"]


def test_any_name_of_a_file_on_s3(s3: S3, tmp_path: Path) -> None:
    folder, named = RunFolder.at(s3.uri(f"/{tmp_path.name}/run")), "a b#c?d%20ü[1].png"
    folder.pictures.mkdir(parents=True)
    (folder.pictures / named).write_bytes(b"picture")
    folder.push(folder.pictures)
    assert s3.names(f"{tmp_path.name}/run") == [f"pictures/{named}"]


@pytest.mark.parametrize("name", ["a b", "50%", "a%41", "a#b", "a?b", "ü"])
def test_a_run_at_a_uri_has_a_name_that_a_uri_takes_as_it_is(name: str, tmp_path: Path) -> None:
    at_uri = CONFIG.replace({"train.storage": tmp_path.as_uri(), "train.name": name})
    with pytest.raises(ConfigError, match=f"train.name={re.escape(name)}: cannot be part of a URI"):
        RunFolder.of(at_uri)
    assert RunFolder.of(at_uri.replace({"train.storage": str(tmp_path)})).path == tmp_path / name
    with pytest.raises(ConfigError, match=f"train.init={re.escape(name)}: cannot be part of a URI"):
        initial.read(at_uri.replace({"train.name": "run", "train.init": name}))


def test_an_ordinary_folder_is_left_alone(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path).refresh()
    folder.push(tmp_path / "nothing")
    assert folder == RunFolder(tmp_path) and remote.local(tmp_path) == tmp_path and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "storage, reason",
    [
        ("weird://bucket/runs", "train.storage=weird://bucket/runs: no file system for it"),
        ("s3:///", "train.storage=s3:///: Missing bucket name"),
        ("memory://a#b", "memory://a#b: holds a #"),
    ],
)
def test_a_place_that_cannot_be_used(storage: str, reason: str) -> None:
    config = CONFIG.replace({"train.storage": storage, "train.name": "run", "tracking.uri": "sqlite:////tmp/a.db"})
    with pytest.raises(ConfigError, match=reason) as error:
        RunFolder.of(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", ["s3://KEY:hunter2@bucket/runs", "s3://bucket/runs?secret_key=hunter2"])
def test_a_uri_with_a_secret_is_neither_opened_nor_cached(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for use in (lambda: CONFIG.replace({"train.storage": uri}), lambda: remote.local(uri), lambda: RunFolder.at(uri)):
        with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as error:
            use()
        assert "\n" not in str(error.value) and "hunter2" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remote.copy_of("memory://bucket/run").is_relative_to(tmp_path / "d2sm")
    assert (tmp_path / "d2sm").stat().st_mode & 0o777 == 0o700


def test_the_normal_uri_of_azure_is_taken() -> None:
    uri = "abfs://container@account.dfs.core.windows.net/runs"
    assert remote.check(uri, asked_by="train.storage") == uri
    assert CONFIG.replace({"train.storage": uri}).train.storage == uri


def test_the_tracking_database_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"train.storage=s3://bucket/runs: .* give tracking.uri"):
        uri_of(CONFIG.replace({"train.storage": "s3://bucket/runs"}))


def test_a_server_that_is_away(s3: S3, tmp_path: Path) -> None:
    there = "s3://bucket/runs?endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=us-east-1"
    with pytest.raises(remote.RemoteError, match="127.0.0.1%3A9") as error:
        RunFolder.at(there).write_info(run_id="abc")
    assert "\n" not in str(error.value)


class Broken(Exception):
    """As of somebody else's file system: no OSError."""


class Unreliable(MemoryFileSystem):  # type: ignore[misc]
    """Fails to connect, or at every request."""

    protocol = "unreliable"
    cachable = False
    connects = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.connects:
            raise Broken("no answer")

    def info(self, path: str, **options: Any) -> Any:
        raise Broken("connection lost")


@pytest.mark.parametrize("connects, why", [(False, "no answer"), (True, "connection lost")])
def test_a_file_system_that_raises_what_it_likes(connects: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an error may pass, so it ends neither the heartbeat of a lease nor workers that are restarted."""
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(Unreliable, "connects", connects)
    with pytest.raises(remote.RemoteError, match=f"unreliable://bucket/run: {why}"):
        remote.prune("unreliable://bucket/run", 1)


def test_what_arrow_cannot_open_now_is_no_error_of_the_configuration() -> None:
    """Without a cluster (and Java) it raises OSError here, as S3 does that cannot be asked for a bucket's region."""
    uri = "hdfs://127.0.0.1:9/runs"
    with pytest.raises(remote.RemoteError, match=f"train.storage={uri}"):
        remote.opened(uri, asked_by="train.storage")


@pytest.mark.long
def test_a_run_on_s3_stopped_and_gone_on_with_on_another_machine(
    l1_run: Trained, s3: S3, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights as a run in a folder; evaluated, registered, denoised with; no secret in what it leaves."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    far = l1_run.config.replace(
        {"train.storage": s3.uri("/runs"), "train.name": "far", "train.checkpoint_every": 2, "tracking.uri": uri}
    )
    place = RunFolder.of(far).place
    fit(far.replace({"train.max_steps": 4}), quiet=True)
    forget(place)
    done = experiment.run(far.replace({"tracking.register_as": "streets", "tracking.alias": "champion"}), quiet=True)
    assert done.trained.where == remote.joined(place, "step-00000006")
    ours, theirs = (load_file(run.checkpoint / checkpoint.MODEL) for run in (done.trained, l1_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = s3.names("runs/far")
    assert {"config.yaml", "run.json", "results.json", "step-00000006/meta.json"} <= set(found)
    assert not [name for name in found if SECRET.encode() in s3.read(f"runs/far/{name}")]
    version = registry.lookup("streets@champion", uri=uri)
    loaded = version.load().state_dict()
    assert all(torch.equal(loaded[name], ours[name]) for name in ours)
    forget(place)
    photo = next(scenes_root.glob("leftImg8bit/val/*/*.png"))
    words = ["denoise", str(photo), str(tmp_path / "out.png"), "--model", place, "--add-noise", "25"]
    assert main(words) == 0 and (tmp_path / "out.png").exists()
    assert main(["evaluate", place, "evaluate.sigmas=[25]", "--quiet"]) == 0
    assert f"{done.results.restored['25'].psnr:.2f}" in capsys.readouterr().out
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if SECRET.encode() in path.read_bytes()]
