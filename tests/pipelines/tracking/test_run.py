"""MLflow runs in real stores: sqlite files, and a real server that is killed and started again."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.config import Config
from pipelines.runs.folder import RunFolder
from pipelines.tracking import store
from pipelines.tracking.outbox import REFUSED, STAGED, UNSENT
from pipelines.tracking.registered import RegistryError
from pipelines.tracking.run import Run, commit, open_run, reopen
from pipelines.tracking.store import TrackingError, ui_command, uri_of
from pipelines.training import tracked
from tests.helpers.mlflow_server import Server
from tests.helpers.stores import new_store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration whose store is made once; setting one up takes seconds."""
    folder = tmp_path_factory.mktemp("storage")
    return Config().replace({"train.storage": str(folder), "tracking.uri": new_store(folder)})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def points(run: Run, key: str) -> list[tuple[int, float]]:
    history = store.client(run.uri).get_metric_history(run.id, key)
    return sorted((metric.step, metric.value) for metric in history)


def names(run: Run, folder: str = "") -> set[str]:
    return {item.path for item in store.client(run.uri).list_artifacts(run.id, folder or None)}


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert uri_of(Config()) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert uri_of(Config()) == "http://server:5000"
    given = Config().replace({"tracking.uri": "sqlite:///sub/my.db"})
    assert uri_of(given) == f"sqlite:///{tmp_path}/sub/my.db"  # absolute: Ray's workers run elsewhere
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:///data/mlruns", "ftp://h/x", "sqlite://"])
def test_a_store_that_mlflow_does_not_take(uri: str) -> None:
    with pytest.raises(TrackingError, match="tracking.uri=.*give sqlite:///<folder>/mlflow.db") as caught:
        uri_of(Config().replace({"tracking.uri": uri}))
    assert "\n" not in str(caught.value)


def test_the_password_of_a_server_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URI with a password comes from the environment alone, and goes on without it."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:se%40cret@server:5000/x")
    assert uri_of(Config()) == "https://server:5000/x" == os.environ["MLFLOW_TRACKING_URI"]
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me" and os.environ["MLFLOW_TRACKING_PASSWORD"] == "se@cret"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")  # MLflow has no variables for it
    assert uri_of(Config()) == "postgresql://me:secret@host/db"
    with pytest.raises(TrackingError, match=r"tracking.uri=postgresql://\*\*\*@host/db: .*MLFLOW_TRACKING_URI"):
        store.absolute("postgresql://me:another@host/db")


def test_ui_command() -> None:
    assert ui_command("sqlite:////a b/mlflow.db").endswith(
        "server --backend-store-uri 'sqlite:////a b/mlflow.db' --host 127.0.0.1 --port 5000"
    )
    assert "secret" not in ui_command("postgresql://me:secret@host/db")
    assert ui_command("http://me:secret@host:5000") == "python -m webbrowser http://host:5000"


def test_a_run_from_start_to_end(template: Config, tmp_path: Path) -> None:
    with open_run(template, run_dir=tmp_path / "first", tags={"demo": "yes"}) as run:
        for step in range(1, 1201):  # more than one batch
            run.log(step, {"loss": 1 / step})
        run.results({"psnr.sigma25": 31.5, "noisy.psnr.sigma0": float("inf"), "clean.miou": float("nan")})
        run.text("hello", "notes/hello.txt")
        original = tmp_path / "weights.bin"
        original.write_bytes(b"weights")
        run.file(original, "checkpoints")
        original.unlink()  # a checkpoint may be gone before it is sent
    found = store.client(run.uri).get_run(run.id)
    assert found.info.status == "FINISHED" and found.info.run_name == "first"
    assert points(run, "loss") == [(step, 1 / step) for step in range(1, 1201)]
    assert points(run, "psnr.sigma25") == [(1200, 31.5)]
    assert found.data.metrics.keys() == {"loss", "psnr.sigma25"}  # finite numbers alone
    assert found.data.params["loss.queue_size"] == "1024" and found.data.params["noise.sigma"] == "[0.0, 75.0]"
    assert set(found.data.params) == set(template.flat())
    assert found.data.tags["demo"] == "yes"
    if commit()[0]:
        assert found.data.tags["mlflow.source.git.commit"] == commit()[0]
    assert names(run) == {"config.yaml", "notes", "checkpoints"}
    assert names(run, "checkpoints") == {"checkpoints/weights.bin"}
    assert found.info.artifact_uri.startswith(f"file://{template.train.storage}/mlartifacts/")
    assert list((tmp_path / "first").iterdir()) == []  # nothing unsent, nothing staged


def test_a_resumed_run_has_no_point_twice(template: Config, tmp_path: Path) -> None:
    with open_run(template, run_dir=tmp_path, tags={}) as run:
        run.log(10, {"loss": 1.0})
        run.log(20, {"loss": 2.0, "lr": 0.1})
        run.log(20, {"psnr": 30.0})  # another metric of the same step
    longer = template.replace({"train.epochs": 2})
    with open_run(longer, run_dir=tmp_path, tags={}, run_id=run.id) as again:
        assert again.last_step == 20
        assert store.client(run.uri).get_run(run.id).info.status == "RUNNING"
        for step in (10, 20, 30):  # resumed from a checkpoint older than the last point
            again.log(step, {"loss": 99.0 if step < 30 else 3.0})
    assert again.id == run.id
    assert points(again, "loss") == [(10, 1.0), (20, 2.0), (30, 3.0)]
    found = store.client(run.uri).get_run(run.id)
    assert found.data.params["train.epochs"] == "1" and found.data.tags["d2sm.changed"] == "train.epochs=2"
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_run_ends(template: Config, tmp_path: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), open_run(template, run_dir=tmp_path, tags={}) as run:
        run.log(1, {"loss": 1.0})
        raise error
    assert store.client(run.uri).get_run(run.id).info.status == status
    assert points(run, "loss") == [(1, 1.0)]


def test_system_metrics(template: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with open_run(template, run_dir=tmp_path, tags={}) as run:
        time.sleep(1.0)
    with open_run(template, run_dir=tmp_path, tags={}, run_id=run.id) as run:
        time.sleep(1.0)
    steps = [step for step, _ in points(run, "system/cpu_utilization_percentage")]
    assert len(steps) >= 4 and steps == list(range(len(steps)))  # counted on after the resume
    assert run.last_step == 0  # they are no training steps


def test_refused_values(template: Config, tmp_path: Path) -> None:
    long = template.replace({"data.root": "x" * 6001})
    with pytest.raises(TrackingError, match="^data.root: 6001 .*6000"):
        open_run(long, run_dir=tmp_path, tags={})
    with pytest.raises(TrackingError, match="deadbeef.*tracking.uri.*train.name"):
        open_run(template, run_dir=tmp_path, tags={}, run_id="deadbeef")
    with open_run(template, run_dir=tmp_path, tags={}) as run, pytest.raises(TrackingError, match="psnr@25"):
        run.log(1, {"psnr@25": 1.0})


def test_a_deleted_run_is_restored_or_begun_anew(template: Config, tmp_path: Path) -> None:
    with open_run(template, run_dir=tmp_path, tags={}) as run:
        run.log(1, {"loss": 1.0})
    client = store.client(run.uri)
    client.delete_run(run.id)
    with pytest.raises(TrackingError) as error:
        open_run(template, run_dir=tmp_path, tags={}, run_id=run.id)
    line = str(error.value)
    assert line.startswith(
        f"{run.uri}: the MLflow run {run.id} of {tmp_path} was deleted; restore it: `MLFLOW_TRACKING"
    )
    assert f"MLFLOW_TRACKING_URI={run.uri} " in line and f"mlflow runs restore --run-id {run.id}`" in line
    assert line.endswith(f"or remove {tmp_path / 'run.json'} to begin a new MLflow run") and "\n" not in line


def test_a_run_that_is_deleted_while_it_is_written(
    template: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, with what helps; what MLflow refused is sent once the run is restored."""
    run = open_run(template, run_dir=tmp_path, tags={})
    run.log(1, {"loss": 1.0})
    assert run.flush(20)
    client = store.client(run.uri)
    client.delete_run(run.id)
    with caplog.at_level(logging.WARNING, "pipelines.tracking.outbox"):
        for step in (2, 3, 4):
            run.log(step, {"loss": float(step)})
            run.flush(20)
        assert len(caplog.messages) == 1 and f"mlflow runs restore --run-id {run.id}" in caplog.messages[0]
        run.finish()
    assert f"{tmp_path / UNSENT} keeps them" in caplog.messages[-1] and len(caplog.messages) == 2
    client.restore_run(run.id)
    with open_run(template, run_dir=tmp_path, tags={}, run_id=run.id) as again:
        again.log(5, {"loss": 5.0})
    assert points(again, "loss") == [(step, float(step)) for step in range(1, 6)]
    assert not (tmp_path / UNSENT).exists()


def test_what_mlflow_refuses_for_good_is_said_once(template: Config, tmp_path: Path) -> None:
    """Here the name of a tag that is too long for it; the next start sends nothing, and lacks nothing of its own."""
    with open_run(template, run_dir=tmp_path, tags={"x" * 300: "y"}) as run:
        run.log(1, {"loss": 1.0})
    assert points(run, "loss") == [(1, 1.0)] and run.unsent == 0
    said = tracked.untracked(run, RunFolder.at(tmp_path))
    assert said.startswith("MLflow refused 1 record (") and str(tmp_path / REFUSED) in said and "\n" not in said
    assert store.client(run.uri).get_run(run.id).info.status == "FINISHED"
    with open_run(template, run_dir=tmp_path, tags={}, run_id=run.id) as again:
        again.log(2, {"loss": 2.0})
    assert tracked.untracked(again, RunFolder.at(tmp_path)) == "" and (tmp_path / REFUSED).exists()


def test_an_artifact_that_is_gone_holds_up_nothing(
    template: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a process was killed between sending it and writing that down: nothing can ever send it."""
    (tmp_path / UNSENT).write_text('{"kind": "artifact", "path": "mlflow-unsent/1/gone.txt", "folder": ""}\n')
    run_id = store.prepare(uri_of(template)).create_run("0").info.run_id
    with open_run(template, run_dir=tmp_path, tags={}, run_id=run_id) as run:
        run.log(1, {"loss": 1.0})
    assert points(run, "loss") == [(1, 1.0)] and run.unsent == 0 and not (tmp_path / UNSENT).exists()
    assert store.client(run.uri).get_run(run.id).info.status == "FINISHED"
    gone = tmp_path / "mlflow-unsent" / "1" / "gone.txt"
    assert caplog.messages == [f"{gone}: is gone, so MLflow does not get it"]


@pytest.mark.parametrize("kind", ["closed", "silent", "no http"])
def test_a_server_that_does_not_answer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(store, "check", functools.partial(store.check, timeout=0.5))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        port = listener.getsockname()[1]
        if kind == "closed":
            listener.close()
        if kind == "no http":
            threading.Thread(target=lambda: listener.accept()[0].sendall(b"\0binary\n"), daemon=True).start()
        config = Config().replace({"tracking.uri": f"http://127.0.0.1:{port}"})
        began = time.monotonic()
        with pytest.raises(TrackingError, match="tracking.uri or MLFLOW_TRACKING_URI") as caught:
            open_run(config, run_dir=tmp_path, tags={})
    assert time.monotonic() - began < 30
    message = str(caught.value)
    assert f"http://127.0.0.1:{port}: " in message and "\n" not in message


@pytest.mark.slow
def test_starters_side_by_side(tmp_path: Path) -> None:
    """Unguarded, processes that meet at a new sqlite file break it for good (measured: 6 of 6)."""
    code = (
        "import sys, pathlib; from pipelines.config import Config; from pipelines.tracking import open_run;"
        "c = Config().replace({'tracking.uri': 'sqlite:///' + sys.argv[1] + '/new/mlflow.db'});"
        "r = open_run(c, run_dir=pathlib.Path(sys.argv[1]) / sys.argv[2], tags={});"
        "r.log(1, {'loss': 1.0}); r.finish(); print(r.id)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    ids = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    client = store.client(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert {client.get_run(run_id).data.metrics["loss"] for run_id in ids} == {1.0}
    assert len({client.get_run(run_id).info.experiment_id for run_id in ids}) == 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_while_the_server_is_away(server: Server, tmp_path: Path) -> None:
    config = Config().replace({"tracking.uri": server.uri})
    slowest = 0.0
    with open_run(config, run_dir=tmp_path, tags={}) as run:
        restart = threading.Timer(2.0, server.start)
        for step in range(1, 121):
            if step == 20:
                server.kill()
                restart.start()
            began = time.monotonic()
            run.log(step, {"loss": float(step)})
            if step == 60:
                run.text("written while the server was away", "note.txt")
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.025)
        assert (tmp_path / UNSENT).exists()  # kept on disk as well, should the driver die now
        restart.join()
    assert slowest < 2  # training did not wait: the server is away for longer
    assert points(run, "loss") == [(step, float(step)) for step in range(1, 121)]
    assert {"note.txt", "config.yaml"} <= names(run)
    assert store.client(server.uri).get_run(run.id).info.status == "FINISHED"
    assert not (tmp_path / UNSENT).exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_that_stays_away(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config().replace({"tracking.uri": server.uri})
    run = open_run(config, run_dir=tmp_path, tags={})
    run.log(1, {"loss": 1.0})
    assert run.flush(30)
    server.kill()
    run.log(2, {"loss": 2.0})
    run.text("late", "late.txt")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "pipelines.tracking.outbox"):
        run.finish(timeout=3.0)
    assert time.monotonic() - began < 30
    assert [f"{tmp_path / UNSENT}" in record.getMessage() for record in caplog.records] == [True]
    kept = [json.loads(line) for line in (tmp_path / UNSENT).read_text().splitlines()]
    assert [item["kind"] for item in kept] == ["metric", "artifact", "status"]
    server.start()
    with open_run(config, run_dir=tmp_path, tags={}, run_id=run.id) as again:
        assert again.last_step == 2
        again.log(2, {"loss": 99.0})
        again.log(3, {"loss": 3.0})
    assert points(again, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert "late.txt" in names(again)
    assert not (tmp_path / UNSENT).exists() and not (tmp_path / STAGED).exists()


def test_a_database_that_is_damaged_or_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    from sqlalchemy import create_engine, text

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    remedy = "or give another store with tracking.uri or MLFLOW_TRACKING_URI"
    with create_engine(uri).connect() as full:
        full.execute(text("PRAGMA max_page_count = 1"))  # as on a full disk
        with pytest.raises(TrackingError) as error, store.plain_errors(uri, TrackingError):
            full.execute(text("CREATE TABLE a (b)"))
            full.execute(text("CREATE TABLE c (d)"))
    assert re.fullmatch(
        f"{uri}: no space left on the disk of the database \\(.* are free\\); free .*, {remedy}", str(error.value)
    )
    for content in (b"not a database " * 100, b"SQLite format 3\0" + bytes(range(256)) * 40):
        (tmp_path / "mlflow.db").write_bytes(content)
        with pytest.raises(TrackingError) as error:
            open_run(Config().replace({"tracking.uri": uri}), run_dir=tmp_path / "run", tags={})
        assert str(error.value).startswith(f"{uri}: the database is damaged (") and str(error.value).endswith(remedy)
        assert "\n" not in str(error.value)
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.ERROR)  # which would add a traceback


def test_a_tag_that_no_longer_holds_is_taken_back(template: Config, tmp_path: Path) -> None:
    with open_run(template, run_dir=tmp_path, tags={}) as run:
        pass
    twice = template.replace({"train.epochs": 2})
    with open_run(twice, run_dir=tmp_path, tags={"d2sm.stopped_early": "at step 4"}, run_id=run.id):
        pass
    tags = store.client(run.uri).get_run(run.id).data.tags
    assert "train.epochs=2" in tags["d2sm.changed"] and tags["d2sm.stopped_early"] == "at step 4"
    with open_run(template, run_dir=tmp_path, tags={}, run_id=run.id):
        pass
    tags = store.client(run.uri).get_run(run.id).data.tags
    assert (tags["d2sm.changed"], tags["d2sm.stopped_early"]) == ("", "")


def test_an_artifact_store_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow passes on what boto3 raises: no credentials, no such bucket, no library."""
    from mlflow.store.artifact.gcs_artifact_repo import GCSArtifactRepository
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # without a file of credentials
    (tmp_path / "a.txt").write_text("x")
    uri = "http://server:5000"
    refused = f"^{uri}: NoCredentialsError: Unable to locate .*credentials in the environment"
    with pytest.raises(RegistryError, match=refused), store.plain_errors(uri, RegistryError):
        S3ArtifactRepository("s3://bucket/x").log_artifact(str(tmp_path / "a.txt"))
    monkeypatch.setitem(sys.modules, "google.cloud", None)  # as where it is not installed
    lacking = f"^{uri}: a package that its artifact store needs .*google"
    with pytest.raises(RegistryError, match=lacking), store.plain_errors(uri, RegistryError):
        GCSArtifactRepository("gs://bucket/x").log_artifact(str(tmp_path / "a.txt"))
    with pytest.raises(TrackingError, match="^ours$"), store.plain_errors(uri, RegistryError):
        raise TrackingError("ours")


def test_what_is_added_to_an_ended_run_waits_for_the_store(template: Config, tmp_path: Path) -> None:
    """Also if the run's folder is moved meanwhile; neither the run's status nor its tags change."""
    folder = tmp_path / "before"
    with pytest.raises(KeyboardInterrupt), open_run(template, run_dir=folder, tags={"d2sm.recipe": "a"}) as run:
        run.log(8, {"loss": 1.0})
        raise KeyboardInterrupt
    with reopen(run.id, uri="http://127.0.0.1:9", run_dir=folder, page="#/page", step=10) as away:
        away.results({"psnr.sigma25": 31.5})
        away.text("numbers", "results.txt")
    assert "127.0.0.1:9" in away.away and away.unsent == 2 and away.page == "#/page"
    folder = folder.rename(tmp_path / "after")
    with reopen(run.id, uri=run.uri, run_dir=folder, page="", step=10) as again:
        again.results({"ssim.sigma25": 0.9})
    assert again.away == "" and again.unsent == 0 and list(folder.iterdir()) == []
    assert points(run, "psnr.sigma25") == [(10, 31.5)] and "results.txt" in names(run)
    found = store.client(run.uri).get_run(run.id)
    assert found.info.status == "KILLED" and found.data.tags["d2sm.recipe"] == "a"
    with pytest.raises(TrackingError, match="holds no run deadbeef"):
        reopen("deadbeef", uri=run.uri, run_dir=folder, page="", step=0)


def test_a_status_that_was_left_is_sent_when_the_run_is_reopened(template: Config, tmp_path: Path) -> None:
    """As where the store was away when the training ended; also if it is still away at the first attempt."""
    uri, left = uri_of(template), {"kind": "status", "value": "FINISHED"}
    client = store.prepare(uri)
    run_id = client.create_run("0").info.run_id
    (tmp_path / UNSENT).write_text(json.dumps(left) + "\n")
    with reopen(run_id, uri="http://127.0.0.1:9", run_dir=tmp_path, page="", step=3) as away:
        away.results({"psnr.sigma25": 31.5})
    assert away.unsent == 2 and client.get_run(run_id).info.status == "RUNNING"
    with reopen(run_id, uri=uri, run_dir=tmp_path, page="", step=3) as again:
        again.results({"psnr.sigma50": 27.5})
    assert again.unsent == 0 and not (tmp_path / UNSENT).exists()
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED" and found.data.metrics == {"psnr.sigma25": 31.5, "psnr.sigma50": 27.5}


def test_a_new_run_does_not_get_the_records_of_another(
    template: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a run that never came to a checkpoint begins anew, or run.json was removed for a new MLflow run."""
    first = store.prepare(uri_of(template)).create_run("0").info.run_id
    with reopen(first, uri="http://127.0.0.1:9", run_dir=tmp_path, page="", step=20) as away:
        away.log(20, {"loss": 9.0})
        away.tag("d2sm.skipped_images", "3")
        away.text("old", "results.txt")
    assert away.unsent == 3
    with open_run(template, run_dir=tmp_path, tags={}) as run:
        run.log(20, {"loss": 0.5})
    assert points(run, "loss") == [(20, 0.5)] and names(run) == {"config.yaml"} and run.unsent == 0
    assert "d2sm.skipped_images" not in store.client(run.uri).get_run(run.id).data.tags
    assert list(tmp_path.iterdir()) == [] and f"{tmp_path / UNSENT}: is of an earlier MLflow run" in caplog.text


@pytest.mark.parametrize("name", ["{0}/mine/a.txt", "mlflow-unsent/../../mine/a.txt", "mlflow-unsent/link/a.txt"])
def test_a_planted_list_of_unsent_files_sends_and_removes_nothing_else(
    template: Config, tmp_path: Path, name: str
) -> None:
    """What it names is sent and its folder removed, and it may come with a stranger's run."""
    mine, folder = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    (mine / "a.txt").write_text("secret")
    (folder / STAGED).mkdir(parents=True)
    (folder / STAGED / "link").symlink_to(mine)
    planted = {"kind": "artifact", "path": name.format(tmp_path), "folder": ""}
    (folder / UNSENT).write_text(json.dumps(planted) + "\n")
    run_id = store.prepare(uri_of(template)).create_run("0").info.run_id
    with suppress(TrackingError), open_run(template, run_dir=folder, tags={}, run_id=run_id):  # refused, or gone
        pass
    assert (mine / "a.txt").read_text() == "secret"
    assert list((Path(template.train.storage) / "mlartifacts").rglob("a.txt")) == []


NO_STEP = '{"kind": "metric", "key": "a", "value": 1, "step": "x", "timestamp": 1}'


@pytest.mark.parametrize("line", ["{", "[1]", '{"kind": "tag"}', '{"kind": "else"}', NO_STEP])
def test_a_damaged_list_of_unsent_records_is_one_line(template: Config, tmp_path: Path, line: str) -> None:
    run_id = store.prepare(uri_of(template)).create_run("0").info.run_id
    (tmp_path / UNSENT).write_text('{"kind": "tag", "key": "a", "value": "b"}\n' + line + "\n")
    with pytest.raises(TrackingError, match=rf"^{tmp_path / UNSENT}: line 2: [^\n]*; remove the file[^\n]*$"):
        open_run(template, run_dir=tmp_path, tags={}, run_id=run_id)
